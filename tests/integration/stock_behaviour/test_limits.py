"""Heads that are longer than the settings allow."""

import pytest

from tests.harness.servers.stock import OLD, Subject

LINE_TOO_LONG = 400 if OLD else 414
LIMITS = {
    "line": (LINE_TOO_LONG, b"GET /%s HTTP/1.1\r\n" % (b"x" * 600)),
    "fields": (431, b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 25),
    "field size": (431, b"GET / HTTP/1.1\r\nX: %s\r\n" % (b"x" * 1200)),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits(subject: Subject, limit: str) -> None:
    status, head = LIMITS[limit]
    with subject.connect() as connection:
        connection.send(head + subject.line + b"\r\n")
        assert connection.answer().status == status
        assert connection.closed_by_peer()
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")


def test_just_within_the_limits(subject: Subject) -> None:
    fields = b"".join(b"X-%d: 1\r\n" % number for number in range(17))
    head = b"GET /%s HTTP/1.1\r\n" % (b"x" * 480) + fields + b"Long: " + b"y" * 985 + b"\r\n"
    with subject.connect() as connection:
        connection.send(head + subject.line + b"\r\n")
        assert connection.answer().status == 200


def test_a_line_without_end_is_refused_at_once(subject: Subject) -> None:
    """Not only when the client has given up."""
    with subject.connect() as connection:
        connection.send(b"GET /" + b"x" * 600)
        assert connection.answer().status == LINE_TOO_LONG
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")
