"""PROXY protocol headers: the scanner and gunicorn agree on their length and on the client."""

from ipaddress import ip_address
from typing import Any

import pytest
from gunicorn.config import Config
from hypothesis import example, given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.head import NEED_MORE, OPAQUE, Head, scan
from gunicorn_cluster_ext.routing.proxy_protocol import NO_PROXY_HEADER, scan_proxy
from tests.harness import grammar
from tests.harness.reference import CLIENT, Accepted, Incomplete, config, judge

MODES = {mode: config(proxy_protocol=mode) for mode in ("auto", "v1", "v2")}
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REQUEST = b"GET /a?sid=1 HTTP/1.1\r\nX-Key: 1\r\n\r\n"
MAPPED = SIGNATURE + b"\x21\x21\x00\x24" + b"\x00" * 10 + b"\xff\xff\xc0\x00\x02\x01" + b"\x00" * 20

addresses = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(("::ffff:192.0.2.1", "::192.0.2.1", "2001:DB8::1", "1.2.3", "::%lo", "", "x")),
)
ports = st.one_of(st.integers(0, 65535).map(str), st.sampled_from(("", "65536", "-1", "+1", "x")))
lines = st.builds(
    lambda *fields: " ".join(fields).encode() + b"\r\n",
    st.sampled_from(("PROXY", "PROXY", "PROXY", "PROXY ", "proxy")),
    st.sampled_from(("TCP4", "TCP6", "TCP4", "TCP6", "UNKNOWN", "")),
    *(addresses, addresses, ports, ports),
)


@st.composite
def binaries(draw: st.DrawFn) -> bytes:
    version_command = draw(st.sampled_from((0x21, 0x21, 0x21, 0x20, 0x22, 0x11, 0x01)))
    family = draw(st.sampled_from((0x11, 0x21, 0x11, 0x21, 0x31, 0x01, 0x00, 0x12, 0x41)))
    size = draw(st.sampled_from((12, 36, 0, 8, 11, 32, 35, 50, 216)))
    block = draw(st.binary(min_size=size, max_size=size))
    length = draw(st.sampled_from((size, size, size, size - 1, size + 1, 0xFFFF)))
    return SIGNATURE + bytes([version_command, family]) + max(length, 0).to_bytes(2, "big") + block


@st.composite
def connections(draw: st.DrawFn) -> bytes:
    """The first bytes of a proxy, or of a client that imitates one."""
    header = draw(st.one_of(lines, lines, binaries(), binaries(), st.just(b""), grammar.tokens))
    data = header + draw(st.one_of(st.just(REQUEST), grammar.heads(), grammar.mutated_heads()))
    return data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]


def told_client(accepted: Accepted) -> str | None:
    info: dict[str, Any] = accepted.request.proxy_protocol_info or {}
    address: str | None = info.get("client_addr")
    return address


@pytest.mark.parametrize("mode", MODES)
@given(data=connections())
@example(MAPPED + REQUEST)
def test_client_and_length_agree(mode: str, data: bytes) -> None:
    proxied, verdict = scan_proxy(data, mode), judge(data, MODES[mode])
    if not isinstance(verdict, Accepted) or proxied is OPAQUE:
        return
    assert proxied is not NEED_MORE
    told = told_client(verdict)
    assert (proxied.client is None) == (told is None)
    if proxied.client is not None and told is not None:
        assert ip_address(proxied.client) == ip_address(told)
    assert (proxied is NO_PROXY_HEADER) == (verdict.request.proxy_protocol_info is None)
    head = scan(data[proxied.length :])
    assert head is not NEED_MORE
    if isinstance(head, Head):
        assert head.path.decode() == verdict.request.path
        assert head.query_string.decode() == verdict.request.query
        assert head.header(b"x-key") == verdict.header(b"x-key")


@pytest.mark.parametrize("mode", MODES)
@given(data=connections())
def test_no_thread_waits_for_the_rest_of_a_header(mode: str, data: bytes) -> None:
    """Where gunicorn would wait, the main loop does."""
    if isinstance(judge(data, MODES[mode]), Incomplete):
        proxied = scan_proxy(data, mode)
        assert proxied is not OPAQUE
        assert proxied is NEED_MORE or scan(data[proxied.length :]) is NEED_MORE


@pytest.mark.parametrize("cfg", MODES.values(), ids=MODES)
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 8080 80\r\n",
        SIGNATURE + b"\x21\x11\x00\x0c" + bytes(range(12)),
        SIGNATURE + b"\x21\x21\x00\x24" + bytes(range(36)),
    ],
)
def test_a_header_that_is_certain_is_found(cfg: Config, header: bytes) -> None:
    verdict = judge(header + REQUEST, cfg)
    if isinstance(verdict, Accepted):
        client = told_client(verdict)
        assert scan_proxy(header + REQUEST, cfg.proxy_protocol) == (len(header), client)


def test_the_client_is_spelt_as_gunicorn_spells_it() -> None:
    """A client that comes through proxies of both versions is one client."""
    verdict = judge(MAPPED + REQUEST, MODES["v2"])
    assert isinstance(verdict, Accepted)
    proxied = scan_proxy(MAPPED + REQUEST, "v2")
    assert not isinstance(proxied, type(OPAQUE))
    assert verdict.environ["REMOTE_ADDR"] == "::ffff:192.0.2.1" == proxied.client


def test_the_reference_peer_may_speak_for_clients() -> None:
    assert CLIENT[0] in config().proxy_allow_ips
