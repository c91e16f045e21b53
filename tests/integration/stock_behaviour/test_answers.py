"""Answers: streams, files, errors; and those to many clients at once."""

import hashlib
import random
import select
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.harness.clients.connection import Connection, request_bytes
from tests.harness.servers.stock import Subject, read_head, readable, skip_old_gthread
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

# --- answers --------------------------------------------------------------------------------------


def test_streaming(subject: Subject) -> None:
    with subject.connect() as connection:
        answer = subject.request(connection, "GET", "/stream?n=50")
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.body.count(b"\n") == 50
        assert subject.request(connection, "GET", "/").status == 200


def test_a_large_answer(subject: Subject) -> None:
    with subject.connect() as connection:
        assert len(subject.request(connection, "GET", "/big?bytes=3000000").body) == 3_000_000
        # A client that closes takes what was sent: nothing is cut off.
        answer = subject.request(
            connection, "GET", "/big?bytes=3000000", headers={"Connection": "close"}
        )
        assert len(answer.body) == 3_000_000
        assert connection.closed_by_peer()


@pytest.mark.parametrize("path", ["/file", "/file-like"])
def test_files(subject: Subject, path: str) -> None:
    with subject.connect() as connection:
        for _ in range(2):
            body = subject.request(connection, "GET", path).body
            assert body == b"0123456789abcdef" * 20_000


def test_head(subject: Subject) -> None:
    with subject.connect() as connection:
        connection.send(request_bytes("HEAD", "/big?bytes=1000", subject.headers))
        status, headers = read_head(connection)
        assert (status, headers[b"content-length"]) == (b"HTTP/1.1 200 OK", b"1000")
        assert subject.request(connection, "GET", "/after").json()["path"] == "/after"


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(subject: Subject, status: int) -> None:
    with subject.connect() as connection:
        for _ in range(2):
            connection.send(request_bytes("GET", f"/{status}", subject.headers))
            line, headers = read_head(connection)
            assert line.startswith(b"HTTP/1.1 %d" % status)
            assert b"transfer-encoding" not in headers
        assert subject.request(connection, "GET", "/after").json()["path"] == "/after"


def test_what_the_server_says_of_itself(subject: Subject) -> None:
    with subject.connect() as connection:
        answer = subject.request(connection, "GET", "/flags")
        assert answer.body == b"[True, True, False, 'HTTP/1.1']"


def test_an_application_that_raises(subject: Subject) -> None:
    with subject.connect() as connection:
        answer = subject.request(connection, "GET", "/raise")
        assert answer.status == 500
        assert connection.closed_by_peer()
    assert "RuntimeError: the application fails" in subject.server.log_text()


def test_an_application_that_raises_late(subject: Subject) -> None:
    with subject.connect() as connection:
        connection.send(request_bytes("GET", "/raise-late", subject.headers))
        status, _ = read_head(connection)
        assert status == b"HTTP/1.1 200 OK"
        rest = b"".join(iter(connection.read_line, b""))
        assert b"so far so good" in rest
        assert not rest.endswith(b"0\r\n\r\n")


def test_a_client_that_goes_away_in_the_middle(subject: Subject) -> None:
    for _ in range(3):
        with subject.connect() as connection:
            connection.send(request_bytes("GET", "/big?bytes=3000000", subject.headers))
            assert connection.socket.recv(10)
    for _ in range(3):
        with subject.connect() as connection:
            connection.send(request_bytes("GET", "/sleep?s=0.2", subject.headers))


def test_extra_bytes_behind_the_last_request_cut_nothing_off(subject: Subject) -> None:
    """RFC 9112 section 9.6: closing while input is unread would reset the connection."""
    skip_old_gthread(subject.mode)
    close = {**subject.headers, "Connection": "close"}
    for _ in range(3):
        with subject.connect() as connection:
            connection.send(request_bytes("GET", "/big?bytes=3000000", close))
            assert readable(connection, 20)
            # Most of the answer is in the server's kernel now, and this arrives there.
            connection.send(b"\r\n")
            assert not ends(connection)
            assert len(connection.answer().body) == 3_000_000


def ends(connection: Connection) -> bool:
    """Whether the connection is broken now, or within a moment."""
    poller = select.poll()
    poller.register(connection.socket, 0)  # errors are always reported
    return bool(poller.poll(200))


def test_an_application_that_takes_the_socket(subject: Subject) -> None:
    with ThreadPoolExecutor(4) as crowd:

        def ask(_: int) -> bytes:
            with subject.connect() as connection:
                return bytes(subject.request(connection, "GET", "/take").body)

        assert set(crowd.map(ask, range(40))) == {b"taken"}


# --- many at once ---------------------------------------------------------------------------------


def test_requests_that_wait_for_each_other(subject: Subject) -> None:
    """Threads take them at the same time, also after requests that one thread was enough for."""
    slot = {"Cookie": "gunicorn_worker=1"} if subject.view else {}
    pids: dict[int, list[Connection]] = {}
    with ExitStack() as stack:
        while max((len(four) for four in pids.values()), default=0) < 4:
            connection = stack.enter_context(subject.connect())
            pid = connection.request("GET", "/who", slot).json()["pid"]
            pids.setdefault(pid, []).append(connection)
        four = next(found for found in pids.values() if len(found) == 4)
        for _ in range(5):
            for _ in range(20):
                for connection in four:
                    connection.request("GET", "/who", slot)
            for connection in four:
                connection.send(request_bytes("GET", "/together", slot))
            assert [connection.answer().body for connection in four] == [b"together"] * 4


def test_a_crowd_of_all_sorts(subject: Subject) -> None:
    """Every client gets its own answers, whole and in order, whatever the others do."""

    skip_old_gthread(subject.mode)

    def behave(client: int) -> int:
        dice = random.Random(client)
        connection = subject.server.connect(60)
        try:
            for turn in range(25):
                headers = {}
                if subject.headers:
                    headers["Cookie"] = f"gunicorn_worker={dice.randrange(2)}"
                bodies = [bytes([client]) * dice.choice([0, 1, 500, 20_000])]
                bodies *= dice.choice([1, 1, 3])
                sent = b"".join(
                    request_bytes("POST", f"/{client}/{turn}", headers, body) for body in bodies
                )
                if dice.random() < 0.3:
                    at = dice.randrange(len(sent))
                    connection.send(sent[:at])
                    sent = sent[at:]
                connection.send(sent)
                for body in bodies:
                    answer = connection.answer().json()
                    assert answer["path"] == f"/{client}/{turn}"
                    assert answer["sha1"] == hashlib.sha1(body).hexdigest()
                if dice.random() < 0.2:
                    if dice.random() < 0.5:
                        connection.send(b"GET /half HTT")
                    connection.close()
                    connection = subject.server.connect(60)
        finally:
            connection.close()
        return client

    with ThreadPoolExecutor(16) as crowd:
        assert list(crowd.map(behave, range(16))) == list(range(16))
    if subject.view:
        view = subject.view
        wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
