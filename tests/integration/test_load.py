"""The load client notices everything that goes wrong."""

import socket
import struct
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from tests.harness.clients.load import Load, Report
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

Serve = Callable[[socket.socket], None]

GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"pid": 5, "worker":1}'


class Scripted:
    """A server that runs the same script with each connection, then closes it."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def load_on() -> Iterator[Callable[..., Report]]:
    """Put a load on a scripted server until the report satisfies a condition."""
    started: list[Scripted] = []

    def run(serve: Serve, until: Callable[[Report], bool], **options: float) -> Report:
        started.append(Scripted(serve))
        with Load(started[-1].address, connections=1, pause=0.001, **options) as load:
            wait_until(lambda: until(load.report), 10, "what the client is to see")
        return load.report

    yield run
    for server in started:
        server.close()


def answer(connection: socket.socket, data: bytes) -> bool:
    """Wait for a request and answer it; return False when the client has closed."""
    if not connection.recv(65536):
        return False
    connection.sendall(data)
    return True


def keep_answering(connection: socket.socket) -> None:
    while answer(connection, GOOD):
        pass


def kinds(report: Report) -> set[str]:
    return {failure.kind for failure in report.failures}


def test_all_is_well(load_on: Callable[..., Report]) -> None:
    report = load_on(keep_answering, lambda report: report.answers > 20)
    assert report.complaints(slowest=5) == []
    assert (report.connections, report.requests) == (1, report.answers)
    assert set(report.pids) == {5} and set(report.workers) == {1}
    assert report.complaints(slowest=0) != []


def test_closed_while_idle(load_on: Callable[..., Report]) -> None:
    report = load_on(lambda c: answer(c, GOOD) and None, lambda report: report.connections > 5)
    # The next request may be on its way when the end comes.
    assert report.closes + len(report.failures) >= 5
    assert report.complaints() != []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"", "closed", id="nothing"),
        pytest.param(GOOD[:20], "closed within the answer", id="half a head"),
        pytest.param(GOOD[:-1], "closed within the answer", id="half a body"),
        pytest.param(b"SPDY\r\n\r\n", "unparsable answer", id="no HTTP"),
        pytest.param(GOOD + GOOD, "unparsable answer", id="two answers"),
        pytest.param(GOOD.replace(b'"pid": 5', b'"id":"x"'), "request x", id="another's"),
    ],
)
def test_no_good_answer(load_on: Callable[..., Report], data: bytes, kind: str) -> None:
    report = load_on(lambda c: answer(c, data) and None, lambda report: len(report.failures) > 3)
    assert any(kind in each for each in kinds(report))
    # Nothing is asked twice.
    assert report.requests == len(report.failures) + report.answers


def test_reset(load_on: Callable[..., Report]) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    report = load_on(reset, lambda report: len(report.failures) > 3)
    assert kinds(report) == {"ConnectionResetError"}


def test_no_answer(load_on: Callable[..., Report]) -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    report = load_on(silent, lambda report: len(report.failures) > 1, patience=0.2)
    assert kinds(report) == {"no answer"}


def test_told_to_close(load_on: Callable[..., Report]) -> None:
    closing = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    report = load_on(lambda c: answer(c, closing) and None, lambda report: report.answers > 3)
    assert report.failures == [] and report.closes == 0
    assert report.told_to_close == report.answers
    assert len(report.complaints()) == 1


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with Load(address, connections=1) as load:
        wait_until(lambda: len(load.report.failures) > 2, 10, "failures")
    assert kinds(load.report) == {"ConnectionRefusedError"}
