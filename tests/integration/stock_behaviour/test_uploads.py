"""Bodies of requests: chunked, large, late, and not read."""

import hashlib

from tests.harness.clients.connection import request_bytes
from tests.harness.servers.stock import Subject


def test_chunked_bodies(subject: Subject) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + subject.line + b"\r\n"
    with subject.connect() as connection:
        for pieces in (b"5;a=b\r\nhello\r\n", b"6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"):
            connection.send(head if pieces.startswith(b"5") else b"")
            connection.send(pieces)
        answer = connection.answer().json()
        assert answer["sha1"] == hashlib.sha1(b"hello world").hexdigest()
        assert subject.request(connection, "GET", "/after").json()["path"] == "/after"


def test_a_large_upload(subject: Subject) -> None:
    """The main loop reads the first part of it, together with the head."""
    body = bytes(range(256)) * (5 * 4096)
    with subject.connect() as connection:
        for _ in range(2):
            answer = subject.request(connection, "POST", "/", body=body).json()
            assert answer["length"] == len(body) == 5 * 2**20
            assert answer["sha1"] == hashlib.sha1(body).hexdigest()


def test_a_large_chunked_upload(subject: Subject) -> None:
    piece = b"p" * 70_000
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + subject.line + b"\r\n"
    with subject.connect() as connection:
        connection.send(head + b"%x\r\n%s\r\n" % (len(piece), piece) * 20 + b"0\r\n\r\n")
        answer = connection.answer().json()
        assert answer["sha1"] == hashlib.sha1(piece * 20).hexdigest()


def test_a_body_that_comes_late(subject: Subject) -> None:
    whole = request_bytes("POST", "/", subject.headers, body=b"late")
    with subject.connect() as connection:
        connection.send(whole[:-4])
        connection.send(whole[-4:-2])
        connection.send(whole[-2:])
        assert connection.answer().json()["length"] == 4


def test_a_body_that_the_application_does_not_read(subject: Subject) -> None:
    with subject.connect() as connection:
        answer = subject.request(connection, "POST", "/noread", body=b"n" * 10_000)
        assert answer.json()["length"] == 0
        assert subject.request(connection, "GET", "/after").json()["path"] == "/after"
        answer = subject.request(connection, "POST", "/first-byte", body=b"ab" * 5_000)
        assert answer.body == b"a"
        assert subject.request(connection, "GET", "/after").json()["path"] == "/after"


def test_a_large_body_that_the_application_does_not_read(subject: Subject) -> None:
    """The rest is not drained for ever: the answer arrives, then the connection ends."""
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")
        whole = request_bytes("POST", "/noread", subject.headers, body=b"n" * 150_000)
        connection.send(whole)
        assert connection.answer().json()["path"] == "/noread"
        assert connection.closed_by_peer()


def test_expect_100_continue(subject: Subject) -> None:
    head = b"POST /expected HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n"
    with subject.connect() as connection:
        for _ in range(2):
            connection.send(head + subject.line + b"\r\n")
            assert connection.read_line() == b"HTTP/1.1 100 Continue\r\n"
            assert connection.read_line() == b"\r\n"
            connection.send(b"abc")
            assert connection.answer().json()["length"] == 3


def test_an_expectation_that_fails(subject: Subject) -> None:
    with subject.connect() as connection:
        connection.send(b"GET / HTTP/1.1\r\nExpect: cake\r\n" + subject.line + b"\r\n")
        assert connection.answer().status == 417
        assert connection.closed_by_peer()
