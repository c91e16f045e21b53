import errno
import fcntl
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_cluster_ext.runtime.inboxes import (
    MAX_RECEIVED,
    Address,
    HandoffMessage,
    Inboxes,
    LostDescriptor,
    plain_address,
)
from tests.harness.forks import in_child, spawn, status_of

SEATS = 4


def message(received: bytes = b"", requests: int = 0) -> HandoffMessage:
    client, server = ("192.0.2.1", 40000), ("127.0.0.1", 8000)
    return HandoffMessage(received, client, server, requests, hops=0, owned=False)


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    opened = Inboxes(SEATS)
    yield opened
    opened.close()


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the client's end and the server's end of a connection."""
    client, server = socket.socketpair()
    client.settimeout(10)
    with client, server:
        yield client, server


def close(arrived: tuple[HandoffMessage, int] | None) -> HandoffMessage:
    """Close the connection of a hand-off; return its message."""
    assert arrived is not None
    os.close(arrived[1])
    return arrived[0]


# --- connections cross ------------------------------------------------------------------------


def test_a_connection_crosses_with_what_is_known_of_it(
    inboxes: Inboxes, connection: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connection
    sent = HandoffMessage(b"GET / HTTP/1.1\r\n", ("192.0.2.1", 40000), "/run/app.sock", 7, 2, True)
    assert inboxes.send(2, sent, server.fileno())
    server.close()
    arrived = inboxes.receive(2)
    assert arrived is not None
    received, fd = arrived
    assert received == sent
    with socket.socket(fileno=fd) as there:
        there.sendall(b"answer")
        assert client.recv(100) == b"answer"
    assert client.recv(100) == b"", "no other copy of it is open"


def test_a_connection_crosses_to_another_process(
    inboxes: Inboxes, connection: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connection
    assert inboxes.send(1, message(), server.fileno())
    server.close()

    def answer() -> None:
        arrived = inboxes.receive(1)
        assert arrived is not None
        os.write(arrived[1], b"%d" % os.getpid())

    pid = spawn(answer)
    assert client.recv(100) == b"%d" % pid
    assert status_of(pid) == 0


def test_messages_come_in_order_and_to_the_right_seat(inboxes: Inboxes) -> None:
    for number in range(5):
        assert inboxes.send(number % 2, message(b"%d" % number), 0)
    assert [close(inboxes.receive(0)).received for _ in range(3)] == [b"0", b"2", b"4"]
    assert [close(inboxes.receive(1)).received for _ in range(2)] == [b"1", b"3"]


def test_an_empty_inbox_has_nothing(inboxes: Inboxes) -> None:
    assert [inboxes.receive(seat) for seat in range(SEATS)] == [None] * SEATS


@pytest.mark.parametrize("size", [100, 400, 800])
def test_what_waits_in_an_inbox_is_counted(inboxes: Inboxes, size: int) -> None:
    """Every process counts it, until it is received."""
    assert [inboxes.queued(seat) for seat in range(SEATS)] == [0] * SEATS
    with socket.socket() as connection:
        for number in range(1, 21):
            assert inboxes.send(1, message(bytes(size)), connection.fileno())
            assert number * 0.6 <= inboxes.queued(1) <= number * 1.8 + 1
    assert in_child(lambda: inboxes.queued(1)) == inboxes.queued(1)
    assert [inboxes.queued(seat) for seat in (0, 2, 3)] == [0] * (SEATS - 1)
    for _ in range(20):
        close(inboxes.receive(1))
    assert inboxes.queued(1) == 0


def test_an_inbox_can_be_polled(inboxes: Inboxes) -> None:
    poll = select.poll()
    poll.register(inboxes.reader(3), select.POLLIN)
    assert poll.poll(0) == []
    inboxes.send(3, message(), 0)
    assert [fd for fd, _ in poll.poll(0)] == [inboxes.reader(3).fileno()]


addresses: st.SearchStrategy[Address] = st.one_of(
    st.just(""),
    st.text(max_size=100),
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535)),
    st.tuples(
        st.ip_addresses(v=6).map(str),
        st.integers(0, 65535),
        st.integers(0, 2**20 - 1),
        st.integers(0, 2**32 - 1),
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        HandoffMessage,
        st.binary(max_size=200),
        addresses,
        addresses,
        st.integers(0, 2**40),
        st.integers(0, 3),
        st.booleans(),
    )
)
def test_every_message_is_received_as_it_was_sent(inboxes: Inboxes, sent: HandoffMessage) -> None:
    assert inboxes.send(0, sent, 0)
    received = close(inboxes.receive(0))
    assert received == sent
    assert type(received.client) is type(sent.client)


def test_a_hand_off_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        message().hops = 5  # type: ignore[misc]


# --- size -------------------------------------------------------------------------------------


def test_the_longest_head_that_travels_crosses(inboxes: Inboxes) -> None:
    first, second = os.urandom(MAX_RECEIVED), os.urandom(MAX_RECEIVED)
    assert inboxes.send(0, message(first), 0)
    assert inboxes.send(0, message(second), 0)
    one, other = close(inboxes.receive(0)), close(inboxes.receive(0))
    assert one.received == first, "it has not been written over by the second"
    assert other.received == second


def test_long_addresses_find_room_next_to_the_longest_head(inboxes: Inboxes) -> None:
    path = "/" + "a" * 106
    sent = HandoffMessage(bytes(MAX_RECEIVED), path, path, 2**63, 2, True)
    assert inboxes.send(0, sent, 0)
    assert close(inboxes.receive(0)) == sent


# --- a full inbox -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, MAX_RECEIVED])
def test_a_full_inbox_says_so_and_loses_nothing(inboxes: Inboxes, size: int) -> None:
    sent = 0
    while inboxes.send(0, message(bytes(size), requests=sent), 0):
        sent += 1
        assert sent < 100_000
    assert sent >= 2
    assert inboxes.send(1, message(), 0), "another inbox is not full"
    assert [close(inboxes.receive(0)).requests for _ in range(sent)] == list(range(sent))
    assert inboxes.receive(0) is None
    assert inboxes.send(0, message(), 0), "there is room again"


def test_an_inbox_holds_a_burst(inboxes: Inboxes) -> None:
    """It holds more than net.unix.max_dgram_qlen, which is 10 on many machines."""
    assert all(inboxes.send(0, message(b"G" * 500), 0) for _ in range(50))


def test_a_closed_connection_is_an_error(inboxes: Inboxes) -> None:
    """It is not taken for a full inbox, after which the caller would try again."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError) as failed:
        inboxes.send(0, message(), writer)
    assert failed.value.errno == errno.EBADF


# --- processes come and go --------------------------------------------------------------------


def test_what_is_queued_survives_its_sender(
    inboxes: Inboxes, connection: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connection

    def send_and_die() -> None:
        inboxes.send(3, message(b"GET"), server.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(spawn(send_and_die)) == -signal.SIGKILL
    server.close()
    arrived = inboxes.receive(3)
    assert arrived is not None
    assert arrived[0].received == b"GET"
    os.write(arrived[1], b"answer")
    os.close(arrived[1])
    assert client.recv(100) == b"answer"


def test_what_is_queued_survives_its_receiver(inboxes: Inboxes) -> None:
    """Its replacement reads the next message."""
    for number in range(3):
        inboxes.send(0, message(requests=number), 0)

    def read_one_and_die() -> None:
        inboxes.receive(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(spawn(read_one_and_die)) == -signal.SIGKILL
    assert [close(inboxes.receive(0)).requests for _ in range(2)] == [1, 2]
    assert inboxes.receive(0) is None


# --- file descriptors -------------------------------------------------------------------------


def test_what_is_received_is_not_passed_to_programs(inboxes: Inboxes) -> None:
    inboxes.send(0, message(), 0)
    arrived = inboxes.receive(0)
    assert arrived is not None
    assert fcntl.fcntl(arrived[1], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(arrived[1])


def test_inboxes_are_not_passed_to_programs(inboxes: Inboxes) -> None:
    assert not any(inboxes.reader(seat).get_inheritable() for seat in range(SEATS))


def test_sending_leaves_the_connection_open(
    inboxes: Inboxes, connection: tuple[socket.socket, socket.socket]
) -> None:
    client, server = connection
    inboxes.send(0, message(), server.fileno())
    server.sendall(b"still here")
    assert client.recv(100) == b"still here"
    close(inboxes.receive(0))


def test_a_connection_that_finds_no_room_is_lost_and_no_other(inboxes: Inboxes) -> None:
    """A process at its limit of open files loses only the connection that it receives then."""
    for number in range(2):
        inboxes.send(0, message(requests=number), 0)

    def receive() -> list[object]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            inboxes.receive(0)
        except LostDescriptor as error:
            lost = str(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        arrived = inboxes.receive(0)
        assert arrived is not None
        return [lost, arrived[0].requests, arrived[1] == free]

    lost, requests, takes_the_free_place = in_child(receive)
    assert "a handed-off connection was lost: raise ulimit -n" in lost
    assert requests == 1
    assert takes_the_free_place


def test_closing_leaves_nothing_open() -> None:
    def open_files() -> int:
        return len(os.listdir("/dev/fd"))

    before = open_files()
    opened = Inboxes(SEATS)
    assert open_files() == before + 2 * SEATS
    opened.close()
    assert open_files() == before


def test_a_message_of_another_shape_is_refused(inboxes: Inboxes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(
            msgspec.msgpack.encode([b"", 5, "", 0, 0, True]), type=HandoffMessage
        )


def test_an_address_that_is_no_utf8_can_travel(inboxes: Inboxes) -> None:
    """A client chooses the name that its Unix socket is bound to."""
    client = plain_address("/tmp/\udcff\udcfe")
    with socket.socket() as sock:
        assert inboxes.send(0, HandoffMessage(b"", client, "", 0, 0, False), sock.fileno())
    arrived = inboxes.receive(0)
    assert arrived is not None
    os.close(arrived[1])
    assert arrived[0].client == "/tmp/??"
