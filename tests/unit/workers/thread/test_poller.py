import os
import socket
import struct
from collections.abc import Iterator

import pytest

from gunicorn_cluster_ext.workers.thread.connection import Stream
from gunicorn_cluster_ext.workers.thread.poller import EdgePoller, LevelPoller

Pair = tuple[Stream, socket.socket]
AnyPoller = EdgePoller | LevelPoller


@pytest.fixture(params=[EdgePoller, LevelPoller])
def poller(request: pytest.FixtureRequest) -> Iterator[AnyPoller]:
    made = request.param()
    yield made
    made.close()


class Calls(list[str]):
    """The calls that were made."""

    def named(self, name: str) -> "Call":
        return Call(self, name)


class Call:
    def __init__(self, calls: Calls, name: str) -> None:
        self.calls, self.name = calls, name

    def __call__(self, ended: bool) -> None:
        self.calls.append(f"{self.name} ended" if ended else self.name)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def new_pair() -> Pair:
    """A connection's end here, and its client's."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    return Stream(fileno=ours.detach()), theirs


def really_close(*pairs: Pair) -> None:
    for ours, theirs in pairs:
        socket.socket.close(ours)
        theirs.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = new_pair()
    yield made
    really_close(made)


def turn(poller: AnyPoller) -> None:
    poller.call(poller.wait(0))


def test_a_connection_is_called_for_when_it_is_readable(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    ours, theirs = pair
    poller.watch(ours.fileno(), calls.named("a"))
    turn(poller)
    assert calls == []
    theirs.send(b"1")
    turn(poller)
    assert calls == ["a"]


def test_a_connection_is_called_for_when_it_is_readable_already(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    ours, theirs = pair
    theirs.send(b"1")
    poller.watch(ours.fileno(), calls.named("a"))
    turn(poller)
    assert calls == ["a"]


def test_each_arrival_of_input_is_reported(poller: AnyPoller, pair: Pair, calls: Calls) -> None:
    ours, theirs = pair
    poller.watch(ours.fileno(), calls.named("a"))
    for _ in range(3):
        theirs.send(b"1")
        turn(poller)
        ours.recv(10)
        turn(poller)
    assert calls == ["a"] * 3


def test_the_end_of_a_connection_is_reported(poller: AnyPoller, pair: Pair, calls: Calls) -> None:
    ours, theirs = pair
    poller.watch(ours.fileno(), calls.named("a"))
    theirs.shutdown(socket.SHUT_WR)
    turn(poller)
    assert calls == ["a ended" if isinstance(poller, EdgePoller) else "a"]


def test_input_that_was_left_unread_is_reported_again(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    ours, theirs = pair
    theirs.send(b"12")
    poller.watch(ours.fileno(), calls.named("a"))
    turn(poller)
    ours.recv(1)
    poller.pause(ours.fileno())
    poller.pause(ours.fileno())
    turn(poller)
    assert calls == ["a"]
    poller.resume(ours.fileno())
    turn(poller)
    assert calls == ["a", "a"]


def test_a_busy_connection_does_not_wake_the_loop_twice(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    """After its first call it is paused; nothing of its input is lost."""
    ours, theirs = pair
    callback = calls.named("a")
    poller.watch(ours.fileno(), callback)
    stays_watched = poller.busy(ours.fileno())
    for _ in range(3):
        theirs.send(b"1")
        for fd, _event in poller.wait(0):
            poller.pause(fd)
    assert poller.wait(0) == []
    if stays_watched:
        poller.resume(ours.fileno())
    else:
        poller.watch(ours.fileno(), callback)
    turn(poller)
    assert calls == ["a"]


def test_another_descriptor_is_called_for_until_it_is_read(poller: AnyPoller, calls: Calls) -> None:
    reader, writer = os.pipe()
    poller.add(reader, calls.named("pipe"))
    os.write(writer, b"12")
    turn(poller)
    turn(poller)
    assert calls == ["pipe", "pipe"]
    poller.remove(reader)
    turn(poller)
    assert len(calls) == 2
    os.close(reader)
    os.close(writer)


def test_a_removed_descriptor_is_not_called_for(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    ours, theirs = pair
    callback = calls.named("a")
    poller.watch(ours.fileno(), callback)
    theirs.send(b"1")
    readable = poller.wait(0)
    poller.remove(ours.fileno(), callback)
    poller.call(readable)
    turn(poller)
    assert calls == []


def test_a_removed_connection_can_be_watched_again(
    poller: AnyPoller, pair: Pair, calls: Calls
) -> None:
    ours, theirs = pair
    for callback in (calls.named("a"), calls.named("b")):
        poller.watch(ours.fileno(), callback)
        theirs.send(b"1")
        turn(poller)
        ours.recv(10)
        poller.pause(ours.fileno())
        poller.remove(ours.fileno(), callback)
    assert calls == ["a", "b"]


# --- applications that close the connection themselves ---------------------------------------
# TLS sockets and copies of sockets are out of our hands.


@pytest.fixture
def edge() -> Iterator[EdgePoller]:
    made = EdgePoller()
    yield made
    made.close()


def test_a_connection_that_was_closed_elsewhere_is_forgotten(
    edge: EdgePoller, calls: Calls
) -> None:
    pair, callback = new_pair(), calls.named("a")
    fd = pair[0].fileno()
    edge.watch(fd, callback)
    really_close(pair)
    edge.remove(fd, callback)


def test_the_next_connection_with_its_number_is_called_for(edge: EdgePoller, calls: Calls) -> None:
    old = new_pair()
    fd, callback = old[0].fileno(), calls.named("old")
    edge.watch(fd, callback)
    edge.pause(fd)
    really_close(old)
    new = new_pair()
    assert fd in (new[0].fileno(), new[1].fileno())
    edge.watch(fd, calls.named("new"))
    edge.remove(fd, callback)
    new[0].send(b"1")
    new[1].send(b"1")
    turn(edge)
    assert calls == ["new"]
    really_close(new)


def test_a_number_whose_connection_stays_open_elsewhere_can_be_used_again(
    edge: EdgePoller, calls: Calls
) -> None:
    old = new_pair()
    fd = old[0].fileno()
    edge.watch(fd, calls.named("old"))
    copy = os.dup(fd)
    really_close(old)
    new = new_pair()
    os.dup2(new[0].fileno(), fd)
    edge.watch(fd, calls.named("new"))
    new[1].send(b"1")
    turn(edge)
    assert calls[-1] == "new"
    os.close(copy)
    really_close(new)


def test_a_busy_connection_that_is_reset_is_reported_once(poller: AnyPoller, calls: Calls) -> None:
    """A client that gives up must not keep the main loop spinning until its request is done."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours = Stream(fileno=listener.accept()[0].detach())
    poller.watch(ours.fileno(), calls.named("connection"))
    if poller.busy(ours.fileno()):
        poller.pause(ours.fileno())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()  # sends a RST
    for _ in range(20):
        poller.call(poller.wait(0.01))
    assert len(calls) <= 1
    socket.socket.close(ours)
