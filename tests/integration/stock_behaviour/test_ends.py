"""The end of a worker and of the server, and how many connections a worker has."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.stock import (
    THREADED,
    Mode,
    modes,
    readable,
    skip_old_gthread,
    subject_of,
)
from tests.harness.view import PATIENCE_S, View
from tests.harness.waiting import wait_until


@modes
def test_max_requests(gunicorn: StartGunicorn, mode: Mode) -> None:
    """Workers come and go, and no request of a client that honours the answers fails.

    Those of the pack stay until their replacement is there, so clients go on until they are gone.
    """
    skip_old_gthread(mode)
    args = ("-w", "2", "--threads", "4", "--max-requests", "10", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    first = set(server.worker_pids())

    def ask(number: int) -> set[int]:
        pids, connection = set(), server.connect()
        deadline = time.monotonic() + PATIENCE_S
        for turn in count():
            if turn >= 20 and not first & set(server.worker_pids()):
                break
            assert time.monotonic() < deadline, server.report("the first workers stay")
            headers = {"Cookie": f"gunicorn_worker={turn % 2}"}
            answer = connection.request("GET", "/who", headers)
            assert answer.status == 200
            pids.add(answer.json()["pid"])
            if answer.headers["Connection"] == "close":
                connection.close()
                connection = server.connect()
        connection.close()
        return pids

    with ThreadPoolExecutor(3) as crowd:
        seen = set().union(*crowd.map(ask, range(3)))
    assert len(seen) >= 3
    reason = "Autorestarting worker after current request." if mode.is_stock else "max_requests"
    assert reason in server.log_text()
    if subject.view is not None:
        subject.view.wait_slots(2)
    else:
        server.wait_serving(2)
    assert not first & set(server.worker_pids())


@modes
def test_term_finishes_what_is_in_progress(gunicorn: StartGunicorn, mode: Mode) -> None:
    skip_old_gthread(mode)
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    with subject.connect() as slow, subject.connect() as idle, subject.connect() as upload:
        subject.request(idle, "GET", "/")
        slow.send(request_bytes("GET", "/sleep?s=2", subject.headers))
        half = request_bytes("POST", "/upload", subject.headers, body=b"half" * 2)
        upload.send(half[:-4])
        if subject.view:
            wait_until(lambda: subject.view.total("busy") == 2, PATIENCE_S, "two in progress")
        else:
            assert not readable(slow)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "signal: term" in server.log_text(), PATIENCE_S, "TERM")
        upload.send(half[-4:])
        for connection, path in ((upload, "/upload"), (slow, "/sleep")):
            answer = connection.answer()
            assert (answer.status, answer.json()["path"]) == (200, path)
            assert connection.closed_by_peer()
        assert idle.closed_by_peer()
    assert server.wait_exit(PATIENCE_S) == 0
    assert "Traceback" not in server.log_text()


@modes
def test_worker_connections(gunicorn: StartGunicorn, mode: Mode) -> None:
    """A worker with as many connections as it may have accepts no more, threads or not."""
    args = ("-w", "1", "--threads", "8", "--worker-connections", "2", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject_of(server, mode, workers=1)

    def ask(path: str) -> float:
        with server.connect(timeout=60) as connection:
            assert connection.get(path, connection="close").status == 200
            return time.monotonic()

    with ThreadPoolExecutor(3) as crowd:
        begun = time.monotonic()
        slow = [crowd.submit(ask, "/sleep?s=3") for _ in range(2)]
        if mode.is_stock:
            wait_until(lambda: time.monotonic() - begun > 1, 5, "the two to be accepted")
        else:
            view = View(server)
            wait_until(lambda: view.total("busy") == 2, PATIENCE_S, "two busy threads")
        third = ask("/")
        assert third > min(future.result() for future in slow) - 0.5
        assert third - begun > 2.5


@pytest.mark.parametrize("mode", THREADED, ids=str)
def test_kept_alive_connections_are_limited(gunicorn: StartGunicorn, mode: Mode) -> None:
    """worker_connections less threads; more are answered, and closed."""
    args = ("-w", "1", "--threads", "2", "--worker-connections", "5", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject_of(server, mode, workers=1)
    connections = [server.connect() for _ in range(3)]
    try:
        for connection in connections:
            assert connection.get("/").headers["Connection"] == "keep-alive"
        # A connection counts when the main loop has it back, a moment after the answer.
        wait_until(lambda: is_closed_after_one_request(server), PATIENCE_S, "a fourth to be closed")
        assert [connection.get("/").status for connection in connections] == [200] * 3
    finally:
        for connection in connections:
            connection.close()


def is_closed_after_one_request(server: Gunicorn) -> bool:
    with server.connect() as connection:
        return connection.get("/").headers["Connection"] == "close"
