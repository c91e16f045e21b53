import socket
from collections.abc import Iterator

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import example, given
from hypothesis import strategies as st

from gunicorn_cluster_ext.compat import (
    can_read_heads,
    is_answerable,
    is_read,
    is_spent,
    smallest_limit,
    take_buffered,
)
from tests.harness import grammar
from tests.harness.reference import CLIENT, config, would_wait

SMALL = {"limit_request_line": 40, "limit_request_fields": 3, "limit_request_field_size": 30}
CONFIGS = {
    "default": config(),
    "small limits": config(**SMALL),
    "lenient": config(strip_header_spaces=True, permit_obsolete_folding=True),
    "proxied": config(proxy_protocol="auto"),
}

# --- is_answerable ----------------------------------------------------------------------------

incomplete = st.one_of(
    grammar.mutated_heads(),
    st.builds(lambda data, end: data[:end], grammar.odd_heads(), st.integers(0, 200)),
)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@given(data=incomplete, requests=st.integers(0, 2))
@example(b"GET /" + b"a" * 100, 0)
@example(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5, 0)
@example(b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 100, 0)
@example(b"GET / HTTP/1.1\r\nA: b\nC: d", 0)
@example(b"\n", 0)
@example(b"\r", 0)
@example(b"PROXY TCP4 x x x x\r\n", 0)
@example(b"PROXY TCP4 x x x x\r\n", 1)
def test_there_is_an_answer_exactly_when_gunicorn_would_not_wait(
    cfg: Config, data: bytes, requests: int
) -> None:
    assert is_answerable(cfg, data, CLIENT, requests) is not would_wait(data, cfg, CLIENT, requests)


def test_a_head_that_grows_past_all_limits_is_answered() -> None:
    """Otherwise a client could fill the memory until the head times out."""
    cfg = config(**SMALL)
    data = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200
    assert not would_wait(data, cfg, CLIENT, 0)
    assert is_answerable(cfg, data, CLIENT, 0)


def test_a_head_that_grows_past_the_default_limits_is_answered() -> None:
    data = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200_000
    assert is_answerable(config(), data, CLIENT, 0)


@pytest.mark.parametrize("client", [CLIENT, ("::1", 1, 0, 0), "", b""])
def test_any_kind_of_client_can_be_asked_about(client: object) -> None:
    assert is_answerable(config(), b"\x16\x03\x01\r\n", client, 0)
    assert not is_answerable(config(), b"GET", client, 0)


# --- take_buffered ----------------------------------------------------------------------------

FIRST = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
SECOND = b"GET /second HTTP/1.1\r\n\r\n"


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_what_was_read_too_much_is_taken_from_the_parser(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connection
    theirs.sendall(FIRST + SECOND)
    parser = get_parser(config(), ours, CLIENT)
    next(parser)
    parser.finish_body()
    assert take_buffered(parser) == SECOND
    assert take_buffered(parser) == b""
    with pytest.raises(BlockingIOError):
        next(parser)


def test_a_parser_goes_on_after_its_bytes_were_taken(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connection
    theirs.sendall(FIRST + b"GET /taken")
    parser = get_parser(config(), ours, CLIENT)
    next(parser)
    parser.finish_body()
    assert take_buffered(parser) == b"GET /taken"
    parser.unreader.unread(b"GET /given")
    theirs.sendall(b" HTTP/1.1\r\n\r\n")
    assert next(parser).path == "/given"
    assert take_buffered(parser) == b""


# --- is_read, is_spent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "rest", "read", "spent"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 0, True, False),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 0, True, True),
        (b"GET / HTTP/1.0\r\n\r\n", 0, True, True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 0, True, False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", 4, False, False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", 0, True, False),
        (b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody", 0, True, True),
        (b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody", 4, False, False),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 4, False, False),
    ],
)
def test_whether_a_request_was_read_to_its_end(
    data: bytes, rest: int, read: bool, spent: bool
) -> None:
    """After the application has left `rest` bytes of the body."""
    parser = get_parser(config(), iter([data]), CLIENT)
    request = next(parser)
    request.body.read(4 - rest)
    assert is_read(parser) is read
    assert is_spent(parser) is spent


def test_a_connection_without_a_request_is_not_spent() -> None:
    assert not is_spent(get_parser(config(), iter([b""]), CLIENT))
    assert not is_spent(None)


# --- smallest_limit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "field", "smallest"),
    [(4094, 8190, 2048), (100, 8190, 100), (4094, 50, 50), (0, 0, 2048), (0, 70, 70)],
)
def test_how_much_may_pass_a_limit(line: int, field: int, smallest: int) -> None:
    cfg = config(limit_request_line=line, limit_request_field_size=field)
    assert smallest_limit(cfg) == smallest


# --- can_read_heads ---------------------------------------------------------------------------


def test_plain_http_can_be_read() -> None:
    assert can_read_heads(config())


def test_tls_and_uwsgi_cannot_be_read() -> None:
    assert not can_read_heads(config(certfile="cert.pem"))
    assert not can_read_heads(config(protocol="uwsgi"))


@pytest.mark.parametrize(
    ("value", "readable"),
    [("off", True), ("upgrade", True), ("prior-knowledge", False), ("both", False)],
)
def test_http2_without_tls_cannot_be_read(value: str, readable: bool) -> None:
    """On gunicorn 25, which does not speak it, the setting has no effect."""
    cfg = config()
    known = "http2_cleartext" in cfg.settings
    if known:
        cfg.set("http2_cleartext", value)
    assert can_read_heads(cfg) is (readable or not known)
