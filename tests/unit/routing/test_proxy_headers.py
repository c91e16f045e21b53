import pytest
from gunicorn.config import Config
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.head import Head, scan
from gunicorn_cluster_ext.routing.proxy_headers import TrustedProxies
from tests.harness.reference import config

PROXY, PROXIES, CLIENT = "10.0.0.1", "10.0.0.1,172.16.0.0/12,2001:db8::/32", "192.0.2.1"


def trust(cfg: Config) -> TrustedProxies:
    """Return the proxies as a worker configures them."""
    return TrustedProxies(cfg.forwarded_allow_networks(), "*" in cfg.forwarded_allow_ips)


def head(peer: str, *forwarded: bytes) -> Head:
    lines = [b"GET / HTTP/1.1", *(b"X-Forwarded-For: " + value for value in forwarded)]
    scanned = scan(b"\r\n".join([*lines, b"", b""]), peer)
    assert isinstance(scanned, Head)
    return scanned


def client_ip(peer: str, *forwarded: bytes, allowed: str = PROXIES) -> bytes | None:
    return trust(config(forwarded_allow_ips=allowed)).client_ip(head(peer, *forwarded))


# --- who is trusted ---------------------------------------------------------------------------


def test_only_this_machine_is_trusted_by_default() -> None:
    default = trust(config())
    assert "127.0.0.1" in default
    assert "::1" in default
    assert CLIENT not in default


def test_networks_are_trusted() -> None:
    some = trust(config(forwarded_allow_ips=PROXIES))
    assert PROXY in some and "172.31.255.255" in some and "2001:db8::5" in some
    assert "10.0.0.2" not in some and "2001:db9::" not in some


def test_everyone_is_trusted_with_an_asterisk() -> None:
    everyone = trust(config(forwarded_allow_ips="*"))
    assert CLIENT in everyone and "not an address" in everyone


@given(st.text(max_size=20))
def test_what_is_no_address_is_not_trusted(text: str) -> None:
    assert text not in trust(config(forwarded_allow_ips="10.0.0.1"))


# --- who is the client ------------------------------------------------------------------------


def test_a_peer_that_is_not_trusted_is_the_client() -> None:
    assert client_ip(CLIENT) == b"192.0.2.1"
    assert client_ip(CLIENT, b"198.51.100.7") == b"192.0.2.1"


def test_a_proxy_names_the_client() -> None:
    assert client_ip(PROXY, b"192.0.2.1") == b"192.0.2.1"
    assert client_ip(PROXY, b" 2001:db9::1 ") == b"2001:db9::1"


def test_a_proxy_that_names_no_client_is_the_client() -> None:
    assert client_ip(PROXY) == b"10.0.0.1"


def test_the_client_is_the_last_that_is_no_proxy() -> None:
    assert client_ip(PROXY, b"198.51.100.7, 192.0.2.1, 172.16.0.9") == b"192.0.2.1"


def test_several_headers_are_one_list() -> None:
    assert client_ip(PROXY, b"198.51.100.7", b"192.0.2.1,172.16.0.9") == b"192.0.2.1"


def test_the_first_is_the_client_if_all_are_proxies() -> None:
    assert client_ip(PROXY, b"172.16.0.1, 172.16.0.2") == b"172.16.0.1"
    assert client_ip(CLIENT, b"198.51.100.7, 192.0.2.1", allowed="*") == b"198.51.100.7"


def test_what_is_no_address_ends_the_chain() -> None:
    assert client_ip(PROXY, b"192.0.2.1, unknown, 172.16.0.9") == b"unknown"
    assert client_ip(PROXY, b"192.0.2.1, \xe9") == "\xe9".encode()


@pytest.mark.parametrize("forwarded", [b"", b" ", b",", b" , "])
def test_an_empty_list_names_no_client(forwarded: bytes) -> None:
    """Otherwise all the clients of such a proxy would share one key, and one worker."""
    assert client_ip(PROXY, forwarded) == b"10.0.0.1"
    assert client_ip(CLIENT, forwarded, allowed="*") == b"192.0.2.1"
    assert client_ip("", forwarded) is None


def test_empty_items_of_the_list_are_skipped() -> None:
    assert client_ip(PROXY, b", 192.0.2.1,") == b"192.0.2.1"


def test_a_peer_on_a_unix_socket_is_trusted() -> None:
    assert client_ip("", b"192.0.2.1") == b"192.0.2.1"
    assert client_ip("") is None


@given(
    st.sampled_from(("", PROXY, CLIENT, "::ffff:10.0.0.1", "fe80::1%lo")),
    st.lists(st.binary(max_size=20).map(lambda value: value.translate(None, b"\r\n")), max_size=3),
)
def test_no_header_makes_it_fail(peer: str, forwarded: list[bytes]) -> None:
    for allowed in (PROXIES, "*", ""):
        key = client_ip(peer, *forwarded, allowed=allowed)
        assert key is None or key
