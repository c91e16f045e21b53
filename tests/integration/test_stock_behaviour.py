"""What gunicorn's own workers do, Sticky and StickyGevent do too, also with a request handed over.

Each test runs five times: on gthread; on Sticky and StickyGevent; and on these with every request
sent to a worker that does not have its connection, so that it must be handed over.
"""

import hashlib
import json
import random
import re
import select
import signal
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from itertools import count
from pathlib import Path
from typing import Any

import gunicorn
import pytest
import websocket  # type: ignore[import-untyped]

from gunicorn_cluster_ext.routing.rules import rendezvous
from tests.conftest import StartGunicorn
from tests.harness.clients.connection import Connection, request_bytes
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import GEVENT, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until


@dataclass(frozen=True)
class Mode:
    """A worker class, and whether every request is to be handed over."""

    kind: str
    hands_over: bool = False

    @property
    def is_stock(self) -> bool:
        return self.kind == "gthread"

    def __str__(self) -> str:
        return self.kind.rpartition(".")[2] + (", handed over" if self.hands_over else "")


GTHREAD = Mode("gthread")
THREADED = (GTHREAD, Mode(STICKY), Mode(STICKY, hands_over=True))
MODES = (*THREADED, Mode(GEVENT), Mode(GEVENT, hands_over=True))
ARGS = (
    *("-w", "2", "--threads", "8", "--keep-alive", "20"),
    *("--limit-request-line", "500"),
    *("--limit-request-fields", "20"),
    *("--limit-request-field_size", "1000"),
)


@dataclass
class Subject:
    """A server, and how its requests are sent."""

    server: Gunicorn
    mode: Mode
    view: View | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def connect(self, timeout: float = 30) -> Connection:
        """A connection; in the third mode it is with worker 0, and requests ask for worker 1."""
        connection = self.server.connect(timeout)
        if self.mode.hands_over:
            assert self.first(connection)["worker"] == 0
        return connection

    def first(self, connection: Connection) -> Any:
        return connection.request("GET", "/who", {"Cookie": "gunicorn_worker=0"}).json()

    @property
    def line(self) -> bytes:
        """The header line that sends a request away."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()

    def request(self, connection: Connection, method: str, target: str, **more: Any) -> Any:
        headers = {**self.headers, **more.pop("headers", {})}
        return connection.request(method, target, headers, **more)


def subject_of(server: Gunicorn, mode: Mode, workers: int = 2) -> Subject:
    if mode.is_stock:
        server.wait_serving(workers)
        return Subject(server, mode)
    view = View(server)
    view.wait_slots(workers)
    headers = {"Cookie": "gunicorn_worker=1"} if mode.hands_over else {}
    return Subject(server, mode, view, headers)


@pytest.fixture(scope="module", params=MODES, ids=str)
def shared(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """One server for the tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="gce-") as directory:
        server = Gunicorn(Path(directory), "misbehaving:app", "-k", request.param.kind, *ARGS)
        try:
            yield subject_of(server, request.param)
        finally:
            server.stop()
            print(server.report("stopped"))


@pytest.fixture
def subject(shared: Subject) -> Iterator[Subject]:
    """It must be unharmed afterwards, and in the third mode it must have handed over."""
    pids, view = shared.server.worker_pids(), shared.view
    before = view.total("handed_in") if view else 0
    yield shared
    assert shared.server.worker_pids() == pids
    assert shared.server.get("/").status == 200
    if view and shared.mode.hands_over:
        assert view.total("handed_in") > before


modes = pytest.mark.parametrize("mode", MODES, ids=str)

OLD = gunicorn.version_info < (27,)


def skip_old_gthread(mode: Mode) -> None:
    """Here Sticky does on each gunicorn what gthread does only on the newest."""
    if OLD and mode == GTHREAD:
        pytest.skip("gthread does this from gunicorn 27 on")


# --- connections ---------------------------------------------------------------------------


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


# --- pipelining ----------------------------------------------------------------------------


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


# --- bodies --------------------------------------------------------------------------------


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


# --- limits --------------------------------------------------------------------------------

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


# --- answers -------------------------------------------------------------------------------


def read_head(connection: Connection) -> tuple[bytes, dict[bytes, bytes]]:
    status = connection.read_line().rstrip()
    lines = list(iter(lambda: connection.read_line().rstrip(), b""))
    return status, {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}


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


# --- many at once --------------------------------------------------------------------------


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


# --- WebSocket -----------------------------------------------------------------------------


def test_a_websocket(subject: Subject) -> None:
    url = subject.server.url.replace("http", "ws") + "/websocket"
    view = subject.view

    def talk(slot: int) -> None:
        client = websocket.create_connection(url, cookie=f"gunicorn_worker={slot}", timeout=30)
        try:
            assert json.loads(client.recv()) == {"worker": slot if view else None}
            for text in ("short", "long" * 10_000):
                client.send(text)
                assert client.recv() == text
        finally:
            client.close()

    if view is None:
        talk(0)
        return
    before = view.total("handed_in")
    wait_until(lambda: (talk(0), talk(1), view.total("handed_in") > before)[-1], 30, "a hand-off")


def test_a_websocket_on_a_connection_in_use(subject: Subject) -> None:
    with subject.connect() as connection:
        subject.request(connection, "GET", "/")
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        }
        connection.send(request_bytes("GET", "/websocket", {**subject.headers, **upgrade}))
        status, headers = read_head(connection)
        assert status.startswith(b"HTTP/1.1 101")
        assert headers[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# --- PROXY protocol ------------------------------------------------------------------------

V2 = b"\r\n\r\n\x00\r\nQUIT\n"


def proxied(version: str, client: str) -> bytes:
    if version == "v1":
        return f"PROXY TCP4 {client} 198.51.100.9 4321 80\r\n".encode()
    addresses = socket.inet_aton(client) + socket.inet_aton("198.51.100.9")
    ports = struct.pack("!HH", 4321, 80)
    return V2 + b"\x21\x11" + struct.pack("!H", 12) + addresses + ports


def known_as(who: Any) -> tuple[str, str]:
    return who["client"], who["client_port"]


@modes
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_proxy_protocol(gunicorn: StartGunicorn, mode: Mode, version: str) -> None:
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20", "--proxy-protocol", version)
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    view = subject.view
    get = request_bytes("GET", "/who", {})

    def talk(slot: int) -> None:
        at_slot = request_bytes("GET", "/who", {"Cookie": f"gunicorn_worker={slot}"})
        elsewhere = request_bytes("GET", "/who", {"Cookie": f"gunicorn_worker={1 - slot}"})
        with server.connect() as connection:
            connection.send(proxied(version, "203.0.113.7") + at_slot)
            who = connection.answer().json()
            assert known_as(who) == ("203.0.113.7", "4321")
            assert who["worker"] == (slot if view else None)
            # The header stands before the first request only. On gthread it names the client of
            # that, on gevent of all.
            connection.send(elsewhere)
            second = connection.answer().json()
            assert second["client"] == ("203.0.113.7" if mode.kind == GEVENT else "127.0.0.1")
            assert second["worker"] == (1 - slot if view else None)
            # It is not looked for again.
            connection.send(proxied(version, "203.0.113.8") + get)
            assert connection.answer().status == 400

    before = view.total("handed_in") if view else 0
    talk(0)
    talk(1)
    assert view is None or view.total("handed_in") - before >= 2
    for end in (1, 8, 13, len(proxied(version, "203.0.113.7"))):
        with server.connect() as connection:  # in two pieces
            data = proxied(version, "203.0.113.7") + get
            connection.send(data[:end])
            assert not readable(connection)
            connection.send(data[end:])
            assert connection.answer().json()["client"] == "203.0.113.7"
    with server.connect() as connection:  # without: as it comes
        connection.send(get)
        assert connection.answer().json()["client"] == "127.0.0.1"


BROKEN = {
    "no address": b"PROXY TCP4 999.0.113.7 198.51.100.9 4321 80\r\n",
    "too short": b"PROXY TCP4 203.0.113.7\r\n",
    "no port": b"PROXY TCP4 203.0.113.7 198.51.100.9 99999 80\r\n",
    "not TCP": b"PROXY UDP4 203.0.113.7 198.51.100.9 4321 80\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
    "v2, another version": V2 + b"\x31\x11\x00\x0c" + bytes(12),
    "v2, too short": V2 + b"\x21\x11\x00\x02" + bytes(2),
    "v2, no command": V2 + b"\x2f\x11\x00\x0c" + bytes(12),
    "v2, no family": V2 + b"\x21\xf1\x00\x0c" + bytes(12),
    "v2, a local one": V2 + b"\x20\x00\x00\x00",
    "v2, a Unix socket": V2 + b"\x21\x31\x00\xd8" + bytes(216),
    "v2, and more": V2 + b"\x21\x11\x00\x0f" + b"\xcb\x00\x71\x07" + bytes(11),
}


COMPARED = [mode for mode in MODES if not mode.hands_over]


def test_unusual_proxy_headers(gunicorn: StartGunicorn) -> None:
    args = ("-w", "2", "--threads", "4", "--proxy-protocol", "auto")
    servers = [gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False) for mode in COMPARED]
    for server, mode in zip(servers, COMPARED, strict=True):
        subject_of(server, mode)
    for name, header in BROKEN.items():
        seen = []
        for server in servers:
            with server.connect() as connection:
                connection.send(header + request_bytes("GET", "/who"))
                answer = connection.answer()
                client = answer.json()["client"] if answer.status == 200 else None
                seen.append((answer.status, client))
        assert len(set(seen)) == 1, name


@modes
def test_a_proxy_header_of_a_stranger(gunicorn: StartGunicorn, mode: Mode) -> None:
    args = ("-w", "2", "--threads", "4", "--proxy-protocol", "v1")
    server = gunicorn(
        "misbehaving:app", "-k", mode.kind, *args, "--proxy-allow-from", "192.0.2.1", wait=False
    )
    subject_of(server, mode)
    with server.connect() as connection:
        connection.send(proxied("v1", "203.0.113.7") + request_bytes("GET", "/who"))
        assert connection.answer().status == 403


def test_hash_ip_by_the_proxy_header(gunicorn: StartGunicorn) -> None:
    """The client of the PROXY protocol, not the proxy, chooses the worker."""
    args = ("-k", STICKY, "-w", "4", "--proxy-protocol", "v1")
    server = gunicorn("misbehaving:app", *args, config="cluster_sticky = ['hash:ip']\n", wait=False)
    View(server).wait_slots(4)
    for number in range(8):
        client = f"203.0.113.{number}"
        with server.connect() as connection:
            connection.send(proxied("v1", client) + request_bytes("GET", "/who"))
            who = connection.answer().json()
        assert (who["client"], who["worker"]) == (client, rendezvous(client.encode(), range(4)))


def readable(connection: Connection, seconds: float = 0.2) -> bool:
    """Whether the server says something, or closes, within this time."""
    before = connection.socket.gettimeout()
    connection.socket.settimeout(seconds)
    try:
        connection.socket.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.socket.settimeout(before)
    return True


# --- listeners -----------------------------------------------------------------------------


@modes
def test_unix_sockets(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], mode: Mode
) -> None:
    bind = f"unix:{new_directory() / 'app.sock'}"
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20")
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, bind=bind)
    view = None if mode.is_stock else View(server)
    if view:
        view.wait_slots(2)
    headers = {"Cookie": "gunicorn_worker=1"} if mode.hands_over else {}
    subject = Subject(server, mode, view, headers)
    body = b"through a socket" * 50_000
    with subject.connect() as connection:
        who = subject.request(connection, "GET", "/who").json()
        # What gunicorn says of a client without an address.
        assert who["client"] == ""
        answer = subject.request(connection, "POST", "/", body=body).json()
        assert answer["sha1"] == hashlib.sha1(body).hexdigest()
        for path in ("/a", "/b"):
            assert subject.request(connection, "GET", path).json()["path"] == path
        data = request_bytes("GET", "/pieces", subject.headers)
        for at in range(len(data)):
            connection.send(data[at : at + 1])
        assert connection.answer().json()["path"] == "/pieces"
    if mode.hands_over:
        assert view and view.total("handed_in") >= 1


def listeners(server: Gunicorn) -> list[tuple[str, int]]:
    line = re.search(r"Listening at: (\S+)", server.log_text())
    assert line
    urls = [url.rpartition("/")[2].rsplit(":", 1) for url in line[1].split(",")]
    return [(host.strip("[]"), int(port)) for host, port in urls]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@modes
def test_several_listeners(gunicorn: StartGunicorn, mode: Mode) -> None:
    binds = ["-b", "127.0.0.1:0", *(["-b", "[::1]:0"] if has_ipv6() else [])]
    args = ("-w", "2", "--threads", "4", "--keep-alive", "20", *binds)
    server = gunicorn("misbehaving:app", "-k", mode.kind, *args, wait=False)
    subject = subject_of(server, mode)
    found = listeners(server)
    assert len(found) == 1 + len(binds) // 2
    for host, port in found:
        client = HTTPConnection(host, port, timeout=30)
        try:
            for slot in (0, 1, 0, 1):
                client.request("GET", "/who", headers={"Cookie": f"gunicorn_worker={slot}"})
                who = whoami(client)
                assert who["client"] == host
                assert who["worker"] == (slot if subject.view else None)
        finally:
            client.close()
    assert subject.view is None or subject.view.total("handed_in") >= 3 * len(found)


def whoami(client: HTTPConnection) -> Any:
    response = client.getresponse()
    assert response.status == 200
    return json.loads(response.read())


# --- the end of a worker, and of the server ------------------------------------------------


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


# --- TLS -----------------------------------------------------------------------------------


@modes
def test_tls(gunicorn: StartGunicorn, certificate: Certificate, mode: Mode) -> None:
    args = (*certificate.gunicorn_options, "--keep-alive", "20", "--threads", "4")
    config = "cluster_sticky = ['hash:ip', 'cookie']\n" if mode.hands_over else ""
    server = gunicorn(
        "misbehaving:app", "-k", mode.kind, "-w", "2", *args, config=config, wait=False
    )
    server.wait_listening()
    subject = subject_of(server, mode)
    trusting = ssl.create_default_context(cafile=str(certificate.path))
    seen = []
    for _ in range(6):
        client = HTTPSConnection("127.0.0.1", server.port, context=trusting, timeout=30)
        try:
            pids = set()
            for slot in (0, 1, 0):
                client.request("GET", "/who", headers={"Cookie": f"gunicorn_worker={slot}"})
                who = whoami(client)
                assert (who["scheme"], who["client"]) == ("https", "127.0.0.1")
                pids.add(who["pid"])
            assert len(pids) == 1, "one connection stays with one worker"
            body = b"secret" * 100_000
            client.request("POST", "/", body=body)
            assert whoami(client)["sha1"] == hashlib.sha1(body).hexdigest()
            seen.append(who["worker"])
        finally:
            client.close()
    if mode.hands_over:
        assert set(seen) == {rendezvous(b"127.0.0.1", range(2))}
    if subject.view is not None:
        assert "cannot work with TLS" in server.log_text()
        client = HTTPSConnection("127.0.0.1", server.port, context=trusting, timeout=30)
        client.request("GET", "/who")
        response = client.getresponse()
        assert response.headers["Set-Cookie"] is None
        client.close()
    # A client that speaks plainly harms nobody.
    with server.connect() as connection:
        connection.send(request_bytes("GET", "/"))
        connection.closed_by_peer()
    server.stop()
    assert "Traceback" not in server.log_text()
