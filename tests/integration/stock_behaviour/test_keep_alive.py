"""Connections that stay open, and requests that come before the answer to the last."""

import socket
import time

from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.stock import Mode, Subject, modes, skip_old_gthread, subject_of
from tests.harness.view import STICKY, View

# --- connections ----------------------------------------------------------------------------------


def test_keep_alive(subject: Subject) -> None:
    with subject.connect() as connection:
        answers = [subject.request(connection, "GET", f"/{number}") for number in range(5)]
        assert [answer.json()["path"] for answer in answers] == [f"/{n}" for n in range(5)]
        assert {answer.headers["Connection"] for answer in answers} == {"keep-alive"}
        assert len({answer.json()["pid"] for answer in answers}) == 1


def test_connection_close(subject: Subject) -> None:
    with subject.connect() as connection:
        answer = subject.request(connection, "GET", "/", headers={"Connection": "close"})
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert connection.closed_by_peer()


def test_http_1_0(subject: Subject) -> None:
    with subject.connect() as connection:
        connection.send(b"GET /old HTTP/1.0\r\n" + subject.line + b"\r\n")
        answer = connection.answer()
        assert (answer.json()["path"], answer.headers["Connection"]) == ("/old", "close")
        assert connection.closed_by_peer()


def test_http_1_0_with_keep_alive(subject: Subject) -> None:
    with subject.connect() as connection:
        for _ in range(2):
            connection.send(
                b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n" + subject.line + b"\r\n"
            )
            assert connection.answer().headers["Connection"] == "keep-alive"


def test_a_stream_to_an_old_client(subject: Subject) -> None:
    """It knows no chunks: the end of the connection is the end of the answer."""
    with subject.connect() as connection:
        connection.send(b"GET /stream?n=2 HTTP/1.0\r\n" + subject.line + b"\r\n")
        assert connection.answer().body == b"chunk 0\nchunk 1\n"


def test_a_head_that_comes_in_pieces(subject: Subject) -> None:
    data = request_bytes("POST", "/pieces", subject.headers, body=b"in pieces")
    with subject.connect() as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            connection.send(data[at : at + 1])
        assert connection.answer().json()["length"] == 9


def test_empty_lines_before_a_request(subject: Subject) -> None:
    """Gunicorn's parser takes them for a request line."""
    with subject.connect() as connection:
        connection.send(b"\r\n\r\n" + request_bytes("GET", "/", subject.headers))
        assert connection.answer().status == 400
        assert connection.closed_by_peer()
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")


def test_half_close_after_a_request(subject: Subject) -> None:
    with subject.connect() as connection:
        connection.send(request_bytes("GET", "/half", subject.headers))
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.answer().json()["path"] == "/half"
        assert connection.closed_by_peer()


@modes
def test_the_keepalive_timeout_closes(gunicorn: StartGunicorn, mode: Mode) -> None:
    args = ("-w", "2", "--threads", "4", "--keep-alive", "1")
    subject = subject_of(gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False), mode)
    with subject.connect() as connection:
        assert subject.request(connection, "GET", "/").status == 200
        answered = time.monotonic()
        assert connection.closed_by_peer()
        assert time.monotonic() - answered > 0.9


@modes
def test_no_keepalive_at_all(gunicorn: StartGunicorn, mode: Mode) -> None:
    args = ("-w", "2", "--threads", "4", "--keep-alive", "0")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    for _ in range(4):
        with server.connect() as connection:
            answer = subject.request(connection, "GET", "/")
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
            assert connection.closed_by_peer()


# --- pipelining -----------------------------------------------------------------------------------


def test_pipelined_requests(subject: Subject) -> None:
    skip_old_gthread(subject.mode)
    with subject.connect() as connection:
        sent = [
            request_bytes("POST", f"/{number}", subject.headers, body=b"x" * number * 100)
            for number in range(8)
        ]
        connection.send(b"".join(sent))
        answers = [connection.answer().json() for _ in sent]
    assert [(who["path"], who["length"]) for who in answers] == [
        (f"/{number}", number * 100) for number in range(8)
    ]


def test_pipelined_requests_behind_an_unread_body(subject: Subject) -> None:
    skip_old_gthread(subject.mode)
    with subject.connect() as connection:
        first = request_bytes("POST", "/noread", subject.headers, body=b"GET / HTTP/1.1\r\n\r\n")
        connection.send(first + request_bytes("GET", "/second", subject.headers))
        assert connection.answer().json()["path"] == "/noread"
        assert connection.answer().json()["path"] == "/second"


def test_pipelined_requests_behind_a_chunked_body(subject: Subject) -> None:
    skip_old_gthread(subject.mode)
    head = b"POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + subject.line
    with subject.connect() as connection:
        sent = head + b"\r\n3\r\nabc\r\n0\r\n\r\n" + request_bytes("GET", "/next", subject.headers)
        connection.send(sent * 3)
        for _ in range(3):
            assert connection.answer().json()["length"] == 3
            assert connection.answer().json()["path"] == "/next"


def test_a_pipelined_request_of_which_half_is_there(subject: Subject) -> None:
    skip_old_gthread(subject.mode)
    request = request_bytes("GET", "/2", subject.headers)
    with subject.connect() as connection:
        connection.send(request_bytes("GET", "/1", subject.headers) + request[:20])
        assert connection.answer().json()["path"] == "/1"
        connection.send(request[20:] + request[:7])
        assert connection.answer().json()["path"] == "/2"
        connection.send(request[7:])
        assert connection.answer().json()["path"] == "/2"


def test_close_ends_a_pipeline(subject: Subject) -> None:
    last = {**subject.headers, "Connection": "close"}
    with subject.connect() as connection:
        connection.send(request_bytes("GET", "/1", last) + request_bytes("GET", "/2"))
        assert connection.answer().json()["path"] == "/1"
        assert connection.closed_by_peer()


def test_pipelined_requests_of_many_owners(gunicorn: StartGunicorn) -> None:
    """Only Sticky can do this: the right workers answer, in the order of the requests."""
    server = gunicorn("misbehaving:app", "-k", STICKY, "-w", "4", "--keep-alive", "20")
    view = View(server)
    view.wait_slots(4)
    owners = [0, 1, 2, 3, 3, 1, 0, 2, 2, 0]
    sent = b""
    for number, slot in enumerate(owners):
        cookie = {"Cookie": f"gunicorn_worker={slot}"}
        body = bytes([65 + number]) * (number * 700)
        if number % 3 == 2:
            chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
            head = request_bytes("POST", f"/{number}", {**cookie, "Transfer-Encoding": "chunked"})
            sent += head + chunks
        else:
            sent += request_bytes("POST", f"/{number}", cookie, body=body)
    before = view.total("handed_in")
    with server.connect() as connection:
        connection.send(sent)
        answers = [connection.answer().json() for _ in owners]
    assert [who["worker"] for who in answers] == owners
    assert [(who["path"], who["length"]) for who in answers] == [
        (f"/{number}", number * 700) for number in range(len(owners))
    ]
    assert 7 <= view.total("handed_in") - before <= 8
