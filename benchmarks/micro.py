"""Nanoseconds per call of each step that Sticky takes before a request is served.

    python -m benchmarks.micro [--markdown]

The figures are the best of several repeats: the cost of the code when nothing interferes.
"""

from __future__ import annotations

import argparse
import os
import socket
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from gunicorn_cluster_ext.routing.balance import least_loaded
from gunicorn_cluster_ext.routing.head import Head, scan
from gunicorn_cluster_ext.routing.rules import Cookie, EngineIO, Owner, find_owner, rendezvous
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, State, Word
from gunicorn_cluster_ext.runtime.inboxes import HandoffMessage, Inboxes

from . import machine, report

REPEATS = 5
SECONDS_PER_REPEAT = 0.1
SLOTS = 4

SMALL = b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: gunicorn_worker=1\r\n\r\n"
POLL = (
    b"GET /socket.io/?EIO=4&transport=polling&t=PFzQ9fM&sid=lv_VI97HAXpY6yYWAAAC.1.1"
    b" HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n"
)
BROWSER = (
    b"GET /articles/2026/11/sticky-sessions?page=2&sort=newest HTTP/1.1\r\n"
    b"Host: www.example.org\r\n"
    b"Connection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"\r\n'
    b"sec-ch-ua-mobile: ?0\r\n"
    b'sec-ch-ua-platform: "Linux"\r\n'
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
    b" Chrome/142.0.0.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,"
    b"image/webp,image/apng,*/*;q=0.8\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Sec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-User: ?1\r\n"
    b"Sec-Fetch-Dest: document\r\n"
    b"Referer: https://www.example.org/articles/2026/11/\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    b"Cookie: _ga=GA1.1.1234567890.1700000000; csrftoken=5tq8RkqkbGZ0pWm3sXv1cYhJnLdEaUoI;"
    b" gunicorn_worker=1; session=.eJwlzjsOAjEMANG7pKZIHH-XyyDHsQUtWipEd2clyinmSXc77Bnn"
    b"fWyv_xWnjyWNbS0Gaos6pAb1BZ\r\n"
    b"\r\n"
)
RULES = (EngineIO(), Cookie(b"gunicorn_worker"))

Case = tuple[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--markdown", action="store_true")
    markdown = parser.parse_args().markdown
    with hand_off_cases() as hand_offs:
        cases = [*head_cases(), *owner_cases(board()), *hand_offs]
        rows: list[report.Row] = [(name, f"{nanoseconds(call):.0f}") for name, call in cases]
    as_table = report.markdown_table if markdown else report.text_table
    as_list = report.markdown_list if markdown else report.text_list
    print(as_list(machine.describe()))
    print()
    print(as_table("the request path, piece by piece", ("", "ns/call"), rows))


def nanoseconds(call: Callable[[], object]) -> float:
    timer = timeit.Timer(call)
    number, seconds = timer.autorange()
    number = max(1, int(number * SECONDS_PER_REPEAT / seconds))
    return min(timer.repeat(REPEATS, number)) / number * 1e9


def board() -> Board:
    """Return a board as 4 serving workers leave it."""
    made = Board.create(SLOTS)
    for slot in range(SLOTS):
        seat = slot * SEATS_PER_SLOT
        made.clear(seat, generation=1, now=0)
        made.set(seat, Word.THREADS, 4)
        made.set(seat, Word.STATE, State.READY)
    return made


def head(data: bytes) -> Head:
    found = scan(data, "127.0.0.1")
    assert isinstance(found, Head)
    return found


def head_cases() -> Iterator[Case]:
    for name, data in (("small", SMALL), ("Engine.IO poll", POLL), ("browser", BROWSER)):
        yield f"scan, {name} head of {len(data)} bytes", partial(scan, data)
    yield "scan, incomplete browser head", partial(scan, BROWSER[:-2])


def owner_cases(board: Board) -> Iterator[Case]:
    def find(data: bytes) -> Owner | None:
        return find_owner(RULES, head(data), board)

    for name, data in (("small", SMALL), ("Engine.IO poll", POLL), ("browser", BROWSER)):
        yield f"scan and find_owner, {name} head", partial(find, data)
    yield "rendezvous over 4 slots", lambda: rendezvous(b"127.0.0.1", (0, 1, 2, 3))
    yield (
        "loads and least_loaded of 4 workers",
        lambda: least_loaded(board.loads(), 0, strictly=True),
    )


@contextmanager
def hand_off_cases() -> Iterator[list[Case]]:
    inboxes = Inboxes(1)
    connection, other_end = socket.socketpair()
    message = HandoffMessage(SMALL, ("127.0.0.1", 54321), ("127.0.0.1", 8000), 1, 1, owned=True)
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(HandoffMessage).decode
    encoded = encode(message)

    def through_an_inbox() -> None:
        inboxes.send(0, message, connection.fileno())
        received = inboxes.receive(0)
        assert received is not None
        os.close(received[1])

    yield [
        ("hand-off: encode", lambda: encode(message)),
        ("hand-off: decode", lambda: decode(encoded)),
        ("hand-off: send, receive and close, in one process", through_an_inbox),
    ]
    inboxes.close()
    connection.close()
    other_end.close()


if __name__ == "__main__":
    main()
