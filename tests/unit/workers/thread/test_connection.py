import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_cluster_ext.compat import take_buffered
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage, Inboxes
from gunicorn_cluster_ext.workers.listener import Listener
from gunicorn_cluster_ext.workers.thread.connection import (
    Stream,
    ThreadConnection,
    Waiting,
)
from tests.harness.reference import config

CFG = config()
CLIENT, SERVER = ("192.0.2.1", 40000), ("127.0.0.1", 8000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the server's end."""
    theirs, ours = socket.socketpair()
    theirs.settimeout(10)
    with theirs, ours:
        yield theirs, ours


@pytest.fixture
def conns() -> Iterator[list[ThreadConnection]]:
    pairs = [socket.socketpair() for _ in range(5)]
    yield [ThreadConnection(CFG, ours, CLIENT, SERVER) for _, ours in pairs]
    for theirs, ours in pairs:
        theirs.close()
        ours.close()


@contextmanager
def released(conn: ThreadConnection) -> Iterator[ThreadConnection]:
    """Release it as the main loop does when a connection is over."""
    try:
        yield conn
    finally:
        conn.release()


@contextmanager
def stream_of(sock: socket.socket) -> Iterator[Stream]:
    stream = Stream(fileno=sock.detach())
    try:
        yield stream
    finally:
        socket.socket.close(stream)


def handed_over(conn: ThreadConnection) -> ThreadConnection:
    """Return the connection as another worker has it."""
    inboxes = Inboxes(1)
    assert inboxes.send(0, conn.pack(), conn.fd)
    conn.release()
    arrived = inboxes.receive(0)
    inboxes.close()
    assert arrived is not None
    return ThreadConnection.unpack(CFG, *arrived)


# --- packing ----------------------------------------------------------------------------------


def test_a_connection_is_packed_with_what_is_known_of_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    conn = ThreadConnection(CFG, pair[1], CLIENT, SERVER)
    conn.received, conn.served = b"GET / HT", 3
    assert conn.pack() == HandoffMessage(b"GET / HT", CLIENT, SERVER, 3, 1, False)


def test_each_hand_off_of_a_request_is_a_hop(pair: tuple[socket.socket, socket.socket]) -> None:
    conn = ThreadConnection(CFG, pair[1], CLIENT, SERVER)
    conn.received, conn.hops = b"GET", 1
    assert conn.pack().hops == 2


def test_an_idle_connection_has_no_hops(pair: tuple[socket.socket, socket.socket]) -> None:
    conn = ThreadConnection(CFG, pair[1], CLIENT, SERVER)
    conn.hops = 1
    assert conn.pack().hops == 0


def test_an_unpacked_connection_is_the_same(pair: tuple[socket.socket, socket.socket]) -> None:
    conn = ThreadConnection(CFG, pair[1], CLIENT, SERVER)
    conn.received, conn.served, conn.hops, conn.owned = b"GET / HT", 3, 1, True
    with released(handed_over(conn)) as there:
        assert there.owned
        assert (there.client, there.server) == (CLIENT, SERVER)
        assert (there.received, there.requests, there.hops) == (b"GET / HT", 3, 2)
        there.sock.sendall(b"answer")
        assert pair[0].recv(100) == b"answer"
    assert pair[0].recv(100) == b""


@pytest.mark.parametrize(
    ("client", "server", "family", "address"),
    [
        (CLIENT, SERVER, socket.AF_INET, "192.0.2.1"),
        (("2001:db8::1", 1, 0, 0), ("::1", 80, 0, 0), socket.AF_INET6, "2001:db8::1"),
        ("", "/run/app.sock", socket.AF_UNIX, ""),
        (b"", b"\x00abstract", socket.AF_UNIX, ""),
        ("", "", socket.AF_UNIX, ""),
    ],
)
def test_every_kind_of_address_travels(
    pair: tuple[socket.socket, socket.socket],
    client: Any,
    server: Any,
    family: socket.AddressFamily,
    address: str,
) -> None:
    conn = ThreadConnection(CFG, pair[1], client, server)
    assert conn.address == address
    with released(handed_over(conn)) as there:
        assert there.address == address
        assert there.sock.family == family
        as_text = [each.decode() if isinstance(each, bytes) else each for each in (client, server)]
        assert [there.client, there.server] == as_text


# --- the parser goes on -----------------------------------------------------------------------


def test_gunicorns_parser_begins_with_what_was_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    conn = ThreadConnection(CFG, ours, CLIENT, SERVER)
    conn.received = b"GET /a HT"
    theirs.sendall(b"TP/1.1\r\nX-Key: 1\r\n\r\n")
    conn.init()
    request = next(conn.parser)
    assert (request.path, request.headers) == ("/a", [("X-KEY", "1")])
    assert (conn.requests, conn.received) == (1, b"")


def test_requests_are_counted_over_hand_offs(pair: tuple[socket.socket, socket.socket]) -> None:
    """The PROXY protocol, for one, comes only before the first."""
    theirs, ours = pair
    conn = ThreadConnection(CFG, ours, CLIENT, SERVER)
    assert conn.requests == 0
    theirs.sendall(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    conn.init()
    next(conn.parser)
    conn.parser.finish_body()
    conn.received = take_buffered(conn.parser)
    with released(handed_over(conn)) as there:
        assert there.requests == 1
        there.init()
        assert next(there.parser).path == "/2"
        assert there.parser.mesg.req_number == 2
        assert there.requests == 2


def test_what_is_read_later_is_given_to_the_same_parser(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    conn = ThreadConnection(CFG, pair[1], CLIENT, SERVER)
    for number in range(3):
        conn.received = b"GET /%d HTTP/1.1\r\n\r\n" % number
        conn.init()
        assert next(conn.parser).path == f"/{number}"
        assert take_buffered(conn.parser) == b""
    assert conn.requests == 3


# --- sockets ----------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def accept(listener: socket.socket) -> tuple[Stream, Any]:
    opened = Listener(listener, lambda: None)
    accepted = opened.accept()
    assert accepted is not None
    return Stream(*opened.kind, accepted[0]), accepted[1]


def test_a_connection_is_accepted(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as theirs:
        theirs.settimeout(10)
        accepted, client = accept(listener)
        with stream_of(accepted) as sock:
            assert isinstance(accepted, Stream)
            assert client == theirs.getsockname()
            assert (accepted.family, accepted.type) == (listener.family, listener.type)
            assert sock.getpeername() == theirs.getsockname()
            assert sock.gettimeout() is None and not sock.get_inheritable()
            theirs.sendall(b"question")
            assert sock.recv(100) == b"question"


def test_a_thread_that_reads_waits_for_data(pair: tuple[socket.socket, socket.socket]) -> None:
    """It does so also when gunicorn has set the mode twice."""
    theirs, ours = pair
    with stream_of(ours) as stream:
        stream.setblocking(True)
        stream.setblocking(True)
        timer = threading.Timer(0.05, theirs.sendall, (b"late",))
        timer.start()
        assert stream.recv(100) == b"late"
        timer.join()


def test_a_timeout_that_is_set_holds(pair: tuple[socket.socket, socket.socket]) -> None:
    with stream_of(pair[1]) as stream:
        for timeout in (0.01, 0.01, None, 0.01):
            stream.settimeout(timeout)
            assert stream.gettimeout() == timeout
        with pytest.raises(TimeoutError):
            stream.recv(100)
        stream.setblocking(False)
        assert stream.gettimeout() == 0
        with pytest.raises(BlockingIOError):
            stream.recv(100)
        stream.setblocking(True)
        assert stream.gettimeout() is None


def test_a_reset_is_noticed(listener: socket.socket) -> None:
    theirs = socket.create_connection(listener.getsockname())
    sock, _ = accept(listener)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with released(ThreadConnection(CFG, sock, CLIENT, SERVER)), pytest.raises(ConnectionResetError):
        sock.recv(100)


def test_a_thread_that_closes_a_connection_ends_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with stream_of(pair[1]) as stream:
        stream.close()
        stream.close()
        assert pair[0].recv(100) == b""
        assert stream.recv(100) == b""
        with pytest.raises(BrokenPipeError):
            stream.sendall(b"late")


def test_a_thread_that_closes_a_connection_does_not_free_its_number(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """It would be the next connection's while the main loop takes it for this one's."""
    with stream_of(pair[1]) as stream:
        fd = stream.fileno()
        stream.close()
        assert stream.fileno() == fd
        conn = ThreadConnection(CFG, stream, CLIENT, SERVER)
        conn.release()
        with pytest.raises(OSError):
            os.fstat(fd)
        conn.release()


# --- waiting ----------------------------------------------------------------------------------


def test_expired_connections_are_taken_out_oldest_first(conns: list[ThreadConnection]) -> None:
    waiting = Waiting(10)
    for number, conn in enumerate(conns[:3]):
        waiting.add(conn, now=number)
    assert list(waiting.expired(now=9.9)) == []
    assert list(waiting.expired(now=11)) == conns[:2]
    assert list(waiting.expired(now=11)) == []
    assert list(waiting) == [conns[2]]


def test_a_connection_waits_in_one_place(conns: list[ThreadConnection]) -> None:
    here, there = Waiting(10), Waiting(10)
    assert not here and conns[0].waiting is None
    here.add(conns[0], now=0)
    here.add(conns[1], now=0)
    there.add(conns[0], now=1)
    assert (list(here), list(there)) == ([conns[1]], [conns[0]])
    assert (conns[0].waiting, conns[1].waiting) == (there, here)
    there.remove(conns[0])
    assert (len(here), len(there), conns[0].waiting) == (1, 0, None)


def test_an_expired_connection_waits_no_more(conns: list[ThreadConnection]) -> None:
    waiting = Waiting(10)
    waiting.add(conns[0], now=0)
    assert list(waiting.expired(now=10)) == [conns[0]]
    assert conns[0].waiting is None


def test_a_connection_that_is_added_again_waits_the_full_time(
    conns: list[ThreadConnection],
) -> None:
    """It does not hold up those behind it."""
    waiting = Waiting(10)
    waiting.add(conns[0], now=0)
    waiting.add(conns[1], now=1)
    waiting.add(conns[0], now=5)
    assert list(waiting.expired(now=11)) == [conns[1]]
    assert list(waiting.expired(now=15)) == [conns[0]]


def test_connections_may_be_removed_during_an_iteration(conns: list[ThreadConnection]) -> None:
    waiting = Waiting(10)
    for conn in conns:
        waiting.add(conn, now=0)
    for conn in waiting:
        waiting.remove(conn)
    assert len(waiting) == 0
    for conn in conns:
        waiting.add(conn, now=0)
    taken = []
    for conn in waiting.expired(now=10):
        taken.append(conn)
        if conn is conns[0]:
            waiting.remove(conns[2])
    assert taken == [*conns[:2], *conns[3:]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_connection_waits_longer_than_allowed(
    conns: list[ThreadConnection], data: st.DataObject
) -> None:
    """This holds for any order of calls, as long as the clock does not go back."""
    waiting, model, now = Waiting(10), dict[ThreadConnection, float](), 0.0
    for conn in conns:
        conn.waiting = None
    for _ in range(data.draw(st.integers(0, 15))):
        now += data.draw(st.integers(0, 6))
        conn = data.draw(st.sampled_from(conns))
        if data.draw(st.booleans()):
            waiting.add(conn, now)
            model[conn] = now
        elif conn.waiting is waiting:
            waiting.remove(conn)
            del model[conn]
        else:
            late = {each for each, since in model.items() if since + 10 <= now}
            assert set(waiting.expired(now)) == late
            model = {each: since for each, since in model.items() if each not in late}
        assert set(waiting) == set(model)
