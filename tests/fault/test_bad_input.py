"""Whatever a client sends, it gets gunicorn's own answer, and nobody else notices."""

import resource
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from tests.harness.clients.connection import Connection, request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import ASGI, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

WORKERS = 2
HEAD_TIMEOUT_S = 2
COOKIE = "gunicorn_worker"
ARGS = ("-w", str(WORKERS), "--threads", "8", "--keep-alive", "20")


@pytest.fixture(
    scope="module", params=[("gthread", STICKY), ("asgi", ASGI)], ids=["Sticky", "ASGI"]
)
def pair(request: pytest.FixtureRequest) -> Any:
    """A worker class of gunicorn's, and ours on top of it."""
    return request.param


def skip_old_asgi(pair: tuple[str, str], why: str) -> None:
    """Here StickyASGI is what gunicorn's asgi worker is, which has become better."""
    if pair[0] == "asgi" and gunicorn.version_info < (27,):
        pytest.skip(f"asgi before gunicorn 27 {why}")


@pytest.fixture(scope="module")
def stock(pair: tuple[str, str]) -> Iterator[Gunicorn]:
    """What gunicorn itself answers."""
    with tempfile.TemporaryDirectory(prefix="gce-") as directory:
        server = Gunicorn(Path(directory), "whoami:app", "-k", pair[0], *ARGS)
        try:
            server.wait_serving(WORKERS)
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def module_sticky(pair: tuple[str, str]) -> Iterator[Gunicorn]:
    config = f"cluster_head_timeout = {HEAD_TIMEOUT_S}\n"
    with tempfile.TemporaryDirectory(prefix="gce-") as directory:
        server = Gunicorn(Path(directory), "whoami:app", "-k", pair[1], *ARGS, config=config)
        try:
            View(server).wait_slots(WORKERS)
            yield server
        finally:
            server.stop()
            print(server.report("stopped"))


@pytest.fixture
def sticky(module_sticky: Gunicorn) -> Iterator[Gunicorn]:
    pids = View(module_sticky).pids()
    yield module_sticky
    check_unharmed(module_sticky, pids)


def check_unharmed(server: Gunicorn, pids: dict[int, int]) -> None:
    """The same workers serve every slot, and nothing in the log says that something broke."""
    assert View(server).pids() == pids
    for slot, pid in pids.items():
        who = server.get("/", cookie=f"{COOKIE}={slot}").json()
        assert (who["worker"], who["pid"]) == (slot, pid)
    for sign in ("Traceback", "Exception", "Error in"):
        assert sign not in server.log_text(), server.report(sign)


def reaction(server: Gunicorn, data: bytes, then_close: bool = False) -> list[int | str]:
    """The statuses of all answers, until the server closes."""
    statuses: list[int | str] = []
    with server.connect() as connection:
        try:
            connection.send(data)
            if then_close:
                with suppress(OSError):  # the answer, and the end, may be here by now
                    connection.socket.shutdown(socket.SHUT_WR)
            while True:
                statuses.append(connection.answer().status)
        except ConnectionResetError:
            statuses.append("closed")
        except (BrokenPipeError, ConnectionError):
            statuses.append("closed")
    return statuses


CLOSE = b"Connection: close\r\n"
HEAD = b"GET / HTTP/1.1\r\n" + CLOSE
GET = HEAD + b"Host: x\r\n\r\n"
CLIENT_HELLO = (
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(32)) + b"\x00\x00\x20\xcc\xa8"
)

# What gunicorn answers at once, or closes upon, although the client waits.
ANSWERED = {
    "an ordinary request": GET,
    "oversized line": b"GET /" + b"x" * 5_000 + b" HTTP/1.1\r\n\r\n",
    "oversized line without end": b"GET /" + b"x" * 9_000,
    "oversized header": b"GET / HTTP/1.1\r\nX: " + b"x" * 9_000 + b"\r\n\r\n",
    "oversized cookie": b"GET / HTTP/1.1\r\nCookie: " + b"x" * 9_000 + b"\r\n\r\n",
    "too many headers": b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 120 + b"\r\n",
    "very many headers": b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n",
    "huge headers": b"GET / HTTP/1.1\r\n" + (b"X: %s\r\n" % (b"x" * 8_000)) * 98 + CLOSE + b"\r\n",
    "10,000 parameters": b"GET /?" + b"a=1&" * 10_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "1,000 parameters": b"GET /?" + b"a=1&" * 1_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "garbage": bytes(range(128, 256)) + b"\r\n\r\n",
    "random lines": b"\x01\x02\x03\r\nfoo\r\n\r\n",
    "words": b"hello world\r\n\r\n",
    "one word": b"GET\r\n\r\n",
    "an unknown method": b"get / HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "a long method": b"G" * 30 + b" / HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "a proxy request": b"GET http://example.test/path HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "CONNECT": b"CONNECT example.test:443 HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "no path": b"GET  HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "another version": b"GET / HTTP/3.7\r\n" + CLOSE + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/2 by upgrade": b"GET / HTTP/1.1\r\nConnection: close\r\nConnection: Upgrade\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "NUL in the line": b"GET /\x00 HTTP/1.1\r\nConnection: close\r\n\r\n",
    "NUL in a header": HEAD + b"X: \x00\r\n\r\n",
    "NUL in a name": HEAD + b"X\x00: 1\r\n\r\n",
    "NUL in the cookie": HEAD + b"Cookie: gunicorn_worker=\x001\r\n\r\n",
    "NULs": bytes(2_000) + b"\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n" + b"\r\n\r\n",
    "a bare line feed in a header": HEAD + b"X: 1\nCookie: gunicorn_worker=1\r\n\r\n",
    "a bare carriage return": HEAD + b"X: 1\rCookie: gunicorn_worker=1\r\n\r\n",
    "a folded header": HEAD + b"Cookie: a=1;\r\n gunicorn_worker=1\r\n\r\n",
    "a space before a colon": HEAD + b"Cookie : gunicorn_worker=1\r\n\r\n",
    "no colon": HEAD + b"Cookie gunicorn_worker=1\r\n\r\n",
    "an empty name": HEAD + b": gunicorn_worker=1\r\n\r\n",
    "two hosts": HEAD + b"Host: a\r\nHost: b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a length of letters": b"POST / HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
    "length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    b"\r\n0\r\n\r\n",
    "chunks twice": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"POST / HTTP/1.1\r\nTransfer-Encoding: magic\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a request behind garbage": b"\x00\r\n\r\n" + GET,
    "garbage behind the last request": GET + b"\x00\x01\x02\r\n\r\n",
    "an empty line first": b"\r\n" + GET,
    "a PROXY header unasked": b"PROXY TCP4 203.0.113.7 198.51.100.9 4321 80\r\n" + GET,
    "a fragment": b"GET /#?sid=a.1.1 HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "a target of bytes": b"GET /\xff\xfe HTTP/1.1\r\n" + CLOSE + b"\r\n",
    "a header of bytes": b"GET / HTTP/1.1\r\nX: \xff\xfe\r\n" + CLOSE + b"\r\n",
}

# Upon these gunicorn waits for more, in a thread and for as long as the client likes.
UNENDING = {
    "TLS": CLIENT_HELLO,
    "half a method": b"GE",
    "half a line": b"GET / HT",
    "half a header": b"GET / HTTP/1.1\r\nHost: x\r\nCookie: gunicorn",
    "a head without end": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "a carriage return": b"GET / HTTP/1.1\r\nHost: x\r\n\r",
    "half the HTTP/2 preface": b"PRI * HTTP/2.0\r\n",
    "line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "a NUL": b"\x00",
}


@pytest.mark.parametrize("name", ANSWERED)
def test_the_answer_is_gunicorns_own(
    stock: Gunicorn, sticky: Gunicorn, name: str, pair: tuple[str, str]
) -> None:
    if name == "oversized line without end":
        skip_old_asgi(pair, "waits for its end")
    expected = reaction(stock, ANSWERED[name])
    assert expected[-1] == "closed"
    for _ in range(3):  # whichever worker gets it
        assert reaction(sticky, ANSWERED[name]) == expected


def test_garbage_behind_a_request(sticky: Gunicorn, pair: tuple[str, str]) -> None:
    skip_old_asgi(pair, "loses what it has read ahead")
    data = GET.replace(CLOSE, b"") + b"\x00\x01\x02\r\n\r\n"
    assert reaction(sticky, data) == [200, 400, "closed"]


@pytest.mark.parametrize("name", [*ANSWERED, *UNENDING])
def test_half_closed(stock: Gunicorn, sticky: Gunicorn, name: str, pair: tuple[str, str]) -> None:
    if name == "oversized line without end":
        skip_old_asgi(pair, "waits for its end")
    data = {**ANSWERED, **UNENDING}[name]
    expected = [reaction(stock, data, then_close=True)]
    if pair[0] == "asgi":
        # It takes the end of what a client sends for the client's end, as soon as it sees it.
        whole = reaction(stock, data) if name in ANSWERED else [400, "closed"]
        expected = [[*whole[:answers], "closed"] for answers in range(len(whole))]
    assert reaction(sticky, data, then_close=True) in expected


@pytest.mark.parametrize("name", UNENDING)
def test_what_does_not_end_is_timed_out(sticky: Gunicorn, name: str) -> None:
    view = View(sticky)
    before = view.total("timed_out")
    begun = time.monotonic()
    answered = reaction(sticky, UNENDING[name])
    if answered == [408, "closed"]:
        assert time.monotonic() - begun > HEAD_TIMEOUT_S * 0.9
        assert view.wait_total("timed_out", before + 1) == before + 1
    else:  # gunicorn's parser could tell at once that nothing can come of it
        assert answered == [400, "closed"]


def test_a_client_that_dribbles(sticky: Gunicorn) -> None:
    """A byte now and then does not keep it alive."""
    with sticky.connect() as connection:
        connection.send(b"GET / HTTP/1.1\r\n")

        def dribble() -> bool:
            try:
                connection.send(b"x")
            except OSError:
                return True
            return peeked(connection) is not None

        wait_until(dribble, PATIENCE_S, "an end to it")
        assert connection.answer().status == 408


def peeked(connection: Connection) -> bytes | None:
    """What the server says next (b"" when it closes), or None while it is silent."""
    try:
        return connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


# --- tags ----------------------------------------------------------------------------------

COOKIES = {
    "negative": b"-1",
    "plus": b"+1",
    "zeros": b"00",
    "a zero before": b"01",
    "empty": b"",
    "nothing but spaces": b"  ",
    "an equals sign": b"=1",
    "quotes": b'"1"',
    "a slot that nobody has": b"7",
    "out of range": b"16",
    "far out of range": b"9999",
    "a 32-bit number": b"4294967296",
    "a 64-bit number": b"18446744073709551617",
    "a huge number": b"9" * 5_000,
    "a fraction": b"1.0",
    "an exponent": b"1e0",
    "hexadecimal": b"0x1",
    "underscores": b"1_0",
    "Arabic digits": "١".encode(),
    "fullwidth digits": "１".encode(),
    "superscript digits": "¹".encode("latin-1"),
    "percent": b"%31",
    "a tab": b"1\t",
    "another tag": b"1.1",
    "path": b"../1",
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("name", COOKIES)
def test_forged_cookies(stock: Gunicorn, sticky: Gunicorn, name: str) -> None:
    line = b"Cookie: " + COOKIE.encode() + b"=" + COOKIES[name] + b"\r\n"
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + line + CLOSE + b"\r\n"
    expected = reaction(stock, data)
    assert expected == [200, "closed"]
    for _ in range(3):
        assert reaction(sticky, data) == expected


DUPLICATES = {
    "the same": b"Cookie: gunicorn_worker=1; gunicorn_worker=1\r\n",
    "different": b"Cookie: gunicorn_worker=0; gunicorn_worker=1\r\n",
    "different lines": b"Cookie: gunicorn_worker=0\r\nCookie: gunicorn_worker=1\r\n",
    "very many": b"Cookie: " + b"; ".join(b"gunicorn_worker=%d" % n for n in range(300)) + b"\r\n",
    "in another's value": b'Cookie: a="; gunicorn_worker=1; "\r\n',
    "in another's name": b"Cookie: xgunicorn_worker=1; gunicorn_workerx=0\r\n",
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_duplicate_cookies(stock: Gunicorn, sticky: Gunicorn, name: str) -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + DUPLICATES[name] + CLOSE + b"\r\n"
    for _ in range(3):
        assert reaction(sticky, data) == reaction(stock, data) == [200, "closed"]


SIDS = (
    "abc.-1.1",
    "abc.1.-1",
    "abc.7.1",
    "abc.16.1",
    "abc.999.1",
    "abc.9999.1",
    "abc.4294967297.1",
    "abc.1.999999999",
    "abc.1.9999999999",
    "abc.1.18446744073709551617",
    "abc.1.0",
    "abc.01.1",
    "abc.1.01",
    "abc..",
    "abc.1.",
    "abc..1",
    ".1.1",
    "abc.1.1.1",
    "abc.+1.1",
    "abc.1e0.1",
    "abc%2E1%2E1",
    "%61bc.%31.1",
    "abc.%D9%A1.1",
    "abc.1.1%00",
    "abc.1.1%0d%0a",
    "abc.1.1;",
    "abc.1.1%",
    "a" * 64 + ".1.1",
    "a" * 65 + ".1.1",
    "a" * 3_000 + ".1.1",
    "9" * 3_000,
    "abc." + "9" * 3_000 + ".1",
    "",
    "&sid=",
    "abc.0.1&sid=abc.1.1",
)


def test_forged_sids(stock: Gunicorn, sticky: Gunicorn) -> None:
    for sid in SIDS:
        target = f"/socket.io/?EIO=4&transport=polling&sid={sid}".encode()
        data = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
        assert reaction(stock, data) == [200, "closed"], sid
        for _ in range(3):
            assert reaction(sticky, data) == [200, "closed"], sid


def test_10_000_query_parameters(gunicorn: StartGunicorn) -> None:
    """Where the request line may be as long as the parser allows, and a rule reads the query."""
    args = (*ARGS, "--limit-request-line", "0")
    config = "cluster_sticky = ['hash:query:room', 'cookie']\n"
    server = gunicorn("whoami:app", "-k", STICKY, *args, config=config)
    pids = View(server).wait_slots(WORKERS)
    for query in ("a=1&" * 10_000, "room=1&" * 10_000, "&" * 40_000, "room=1&room=2&" * 5_000):
        for head in (f"GET /?{query} HTTP/1.1\r\n", f"GET /?{query}room HTTP/1.1\r\n"):
            data = head.encode() + b"Cookie: gunicorn_worker=1\r\n" + CLOSE + b"\r\n"
            assert reaction(server, data)[0] == 200
    # Longer than what is handed over, so it is served where it arrives.
    data = b"GET /?" + b"a" * 300_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n"
    for _ in range(3):
        assert reaction(server, data) == [200, "closed"]
    assert View(server).pids() == pids
    assert "Traceback" not in server.log_text()


# --- connections that misbehave ------------------------------------------------------------


def reset(connection: Connection) -> None:
    """Close with a RST instead of a FIN."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nCookie: gunicorn_worker=",
        b"GET / HTTP/1.1\r\nCookie: gunicorn_worker=1\r\n\r\n",
        b"GET /?sleep=0.1 HTTP/1.1\r\nCookie: gunicorn_worker=0\r\n\r\n",
        b"POST / HTTP/1.1\r\nCookie: gunicorn_worker=1\r\nContent-Length: 9\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nCookie: gunicorn_worker=0\r\n\r\n"
        b"GET / HTTP/1.1\r\nCookie: gunicorn_worker=1\r\n\r\nGET",
    ],
    ids=["nothing", "line", "head", "request", "slow request", "body", "pipeline"],
)
def test_resets(sticky: Gunicorn, data: bytes) -> None:
    view = View(sticky)
    for _ in range(20):
        connection = sticky.connect()
        if data:
            connection.send(data)
        reset(connection)
    wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
    wait_until(lambda: view.total("busy") == 0, PATIENCE_S, "idle workers")


def test_clients_that_say_nothing(gunicorn: StartGunicorn) -> None:
    """They keep no thread busy, and are closed in the end, without a word."""
    args = ("-w", "2", "--threads", "1", "--keep-alive", "1")
    server = gunicorn("whoami:app", "-k", STICKY, *args)
    view = View(server)
    pids = view.wait_slots(2)
    begun = time.monotonic()
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect(timeout=60)) for _ in range(30)]
        for slot in (0, 1) * 5:
            assert server.get("/", cookie=f"{COOKIE}={slot}").json()["worker"] == slot
        wait_until(lambda: view.total("busy") == 0, PATIENCE_S, "idle threads")
        for connection in silent:
            assert connection.closed_by_peer()
        assert time.monotonic() - begun > 2
    wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
    check_unharmed(server, pids)


# --- slow clients --------------------------------------------------------------------------

SLOW = 1_000


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process needs a socket for each slow client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * SLOW if hard == resource.RLIM_INFINITY else min(4 * SLOW, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def latencies(server: Gunicorn, count: int = 40) -> list[float]:
    taken = []
    for number in range(count):
        begun = time.monotonic()
        slot = number % 4
        assert server.get("/", cookie=f"{COOKIE}={slot}").json()["worker"] == slot
        taken.append(time.monotonic() - begun)
    return taken


@pytest.mark.usefixtures("many_files")
def test_1_000_slow_clients(gunicorn: StartGunicorn) -> None:
    args = ("-w", "4", "--threads", "2", "--keep-alive", "20")
    config = "cluster_head_timeout = 120\n"
    server = gunicorn("whoami:app", "-k", STICKY, *args, config=config)
    view = View(server)
    pids = view.wait_slots(4)
    before = latencies(server)
    slow: list[socket.socket] = []
    try:
        for number in range(SLOW):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            slow.append(client)
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nX: %d" % number)
        wait_until(lambda: view.total("connections") >= SLOW, PATIENCE_S, "1,000 connections")
        during = latencies(server)
        for client in slow:  # each says one more byte, and still does not end
            client.sendall(b"x")
        during += latencies(server)
        wait_until(lambda: view.total("busy") == 0, PATIENCE_S, "idle threads")
        # Twice as long would be as usual here; waiting for a slow client would be seconds.
        usual = statistics.median(before)
        assert statistics.median(during) < 20 * usual + 0.25
        # Those that end after all are answered.
        for client in slow[::100]:
            client.sendall(b"\r\n\r\n")
        for client in slow[::100]:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
    finally:
        for client in slow:
            client.close()
    wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
    check_unharmed(server, pids)


def test_heads_as_large_as_they_may_be(gunicorn: StartGunicorn) -> None:
    """Clients that send 800 KB of head each, and never end: the main loop must not drown."""
    config = "cluster_head_timeout = 60\n"
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "4", "--threads", "2", config=config)
    view = View(server)
    pids = view.wait_slots(4)
    usual = statistics.median(latencies(server))
    head = b"GET / HTTP/1.1\r\n" + (b"X: %s\r\n" % (b"x" * 8_000)) * 98
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect(timeout=60)) for _ in range(20)]
        for client in clients:
            client.socket.setblocking(False)
        rest = dict.fromkeys(clients, head)
        during: list[float] = []
        while any(rest.values()):
            for client, data in rest.items():
                try:
                    rest[client] = data[client.socket.send(data[:65536]) :] if data else b""
                except BlockingIOError:
                    continue
            during += latencies(server, 4)
        assert statistics.median(during) < 20 * usual + 0.25
    wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
    check_unharmed(server, pids)


def test_requests_at_once_from_many(sticky: Gunicorn, pair: tuple[str, str]) -> None:
    """Each slow client among ordinary ones on the same connection: what is ready is served."""
    skip_old_asgi(pair, "loses what it has read ahead")
    get = request_bytes("GET", "/", {"Cookie": f"{COOKIE}=0"})
    with ExitStack() as stack:
        clients = [stack.enter_context(sticky.connect()) for _ in range(50)]
        for client in clients:
            client.send(get + get[:30])
        for client in clients:
            assert client.answer().json()["worker"] == 0
        for client in clients:
            client.send(get[30:])
        for client in clients:
            assert client.answer().json()["worker"] == 0
