"""What gunicorn's asgi worker does, StickyASGI does too, also with a request handed over."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import gunicorn
import psutil
import pytest
import websocket

from gunicorn_cluster_ext.routing.rules import rendezvous
from tests.harness.clients.connection import Connection, request_bytes
from tests.harness.programs import Programs, StartGunicorn
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.site import StartSite
from tests.harness.view import ASGI, PATIENCE_S, View
from tests.harness.waiting import wait_until

APP = "misbehaving_asgi:app"
ARGS = ("-w", "2", "--keep-alive", "20")
# Before gunicorn 27 its asgi worker loses a request that was read together with the one before,
# cannot serve the uwsgi protocol, and does not tell an application that its WebSocket has ended.
NEWEST = gunicorn.version_info >= (27,)


def cookie(slot: int) -> dict[str, str]:
    return {"Cookie": f"gunicorn_worker={slot}"}


class Subject:
    """A server, and how its requests are sent: if `away`, to a worker without the connection."""

    def __init__(self, server: Gunicorn, view: View | None, away: bool) -> None:
        self.server, self.view, self.away = server, view, away
        self.headers = cookie(1) if away else {}

    def connect(self) -> Connection:
        connection = self.server.connect(timeout=30)
        if self.away:
            assert connection.request("GET", "/", cookie(0)).json()["worker"] == 0
        return connection

    def request(self, connection: Connection, target: str, body: bytes = b"", **more: str) -> Any:
        method = "POST" if body else "GET"
        return connection.request(method, target, {**self.headers, **more}, body)


MODES = {
    "asgi": ("asgi", "auto", False),
    "sticky": (ASGI, "auto", False),
    "handed over": (ASGI, "auto", True),
    "handed over, asyncio": (ASGI, "asyncio", True),
}


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def shared(request: pytest.FixtureRequest, module_programs: Programs) -> Subject:
    """One server of each mode, for the tests that leave it as it was."""
    kind, loop, away = request.param
    server = module_programs.gunicorn(APP, "-k", kind, "--asgi-loop", loop, *ARGS, wait=False)
    view = View(server) if kind == ASGI else None
    view.wait_slots(2) if view else server.wait_serving(2)
    return Subject(server, view, away)


@pytest.fixture
def subject(shared: Subject) -> Iterator[Subject]:
    """A shared server, which must be unharmed afterwards, and must have handed over if it is to."""
    pids, view = shared.server.worker_pids(), shared.view
    before = view.total("handed_in") if view else 0
    yield shared
    assert shared.server.worker_pids() == pids
    assert shared.server.get("/").status == 200
    if view and shared.away:
        assert view.total("handed_in") > before


def sha1(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


# --- requests ------------------------------------------------------------------------------


def test_keep_alive(subject: Subject) -> None:
    with subject.connect() as connection:
        answers = [subject.request(connection, f"/{number}") for number in range(5)]
        assert [answer.json()["path"] for answer in answers] == [f"/{n}" for n in range(5)]
        assert len({answer.json()["pid"] for answer in answers}) == 1
        assert {answer.json()["client"] for answer in answers} == {"127.0.0.1"}


def test_connection_close(subject: Subject) -> None:
    with subject.connect() as connection:
        assert subject.request(connection, "/", Connection="close").status == 200
        assert connection.closed_by_peer()


def test_a_head_that_comes_in_pieces(subject: Subject) -> None:
    data = request_bytes("POST", "/echo", subject.headers, body=b"in pieces")
    with subject.connect() as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            connection.send(data[at : at + 1])
        assert connection.answer().json()["length"] == 9


@pytest.mark.parametrize("size", [1, 20_000, 100_000, 3_000_000])
def test_bodies(subject: Subject, size: int) -> None:
    body = os.urandom(size)
    with subject.connect() as connection:
        for _ in range(2):
            assert subject.request(connection, "/echo", body).json()["sha1"] == sha1(body)


def test_a_body_that_comes_late(subject: Subject) -> None:
    head, body = request_bytes("POST", "/echo", subject.headers, body=b"late").split(b"\r\n\r\n")
    with subject.connect() as connection:
        connection.send(head + b"\r\n\r\n")
        for at in range(len(body)):
            connection.send(body[at : at + 1])
        assert connection.answer().json()["length"] == 4


def test_a_large_answer(subject: Subject) -> None:
    with subject.connect() as connection:
        for _ in range(2):
            assert len(subject.request(connection, "/big?bytes=5000000").body) == 5_000_000


def test_an_application_that_raises(subject: Subject) -> None:
    with subject.connect() as connection:
        assert subject.request(connection, "/raise").status == 500
    assert subject.server.get("/").status == 200


def test_events(subject: Subject) -> None:
    with subject.connect() as connection:
        body = subject.request(connection, "/events?n=3&s=0.05").body.decode()
        events = [json.loads(line[6:]) for line in body.split("\n\n") if line]
        assert [event["number"] for event in events] == [0, 1, 2]
        assert subject.request(connection, "/").status == 200


def test_a_websocket(subject: Subject) -> None:
    async def talk() -> Any:
        url = f"{subject.server.url}/websocket"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url, headers=subject.headers) as client:
                greeting = await client.receive_json()
                for text in ("short", "long" * 10_000):
                    await client.send_str(text)
                    assert await client.receive_str() == text
        return greeting

    with subject.connect():  # a hand-off, wherever the WebSocket arrives
        pass
    seen = {asyncio.run(talk())["worker"] for _ in range(5)}
    if subject.away:
        assert seen == {1}
        with subject.connect() as connection:
            assert subject.request(connection, "/").json()["worker"] == 1


if NEWEST:

    def test_pipelined_requests(subject: Subject) -> None:
        bodies = [b"x" * number * 100 for number in range(8)]
        sent = [request_bytes("POST", "/echo", subject.headers, body) for body in bodies]
        with subject.connect() as connection:
            connection.send(b"".join(sent))
            answers = [connection.answer().json() for _ in sent]
        assert [who["length"] for who in answers] == [len(body) for body in bodies]

    def test_a_pipelined_request_of_which_half_is_there(subject: Subject) -> None:
        request = request_bytes("GET", "/2", subject.headers)
        with subject.connect() as connection:
            connection.send(request_bytes("GET", "/1", subject.headers) + request[:20])
            assert connection.answer().json()["path"] == "/1"
            connection.send(request[20:])
            assert connection.answer().json()["path"] == "/2"

    @pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
    def test_pipelined_requests_of_many_owners(gunicorn: StartGunicorn, loop: str) -> None:
        """The right workers answer, in the order of the requests, however slowly they are read."""
        server = gunicorn(APP, "-k", ASGI, "-w", "4", "--asgi-loop", loop, wait=False)
        view = View(server)
        view.wait_slots(4)
        owners = [0, 1, 2, 3, 3, 1, 0, 2, 2, 0]
        sent = [request_bytes("GET", f"/{n}", cookie(slot)) for n, slot in enumerate(owners)]
        large = request_bytes("GET", "/big?bytes=9000000", cookie(0))
        with server.connect(timeout=30) as connection:
            connection.send(large + b"".join(sent))
            assert len(connection.answer().body) == 9_000_000
            answers = [connection.answer().json() for _ in sent]
        # Before an answer has left its process, the connection cannot.
        assert [who["path"] for who in answers] == [f"/{number}" for number in range(10)]
        assert [who["worker"] for who in answers][1:] == owners[1:]

    def test_the_uwsgi_protocol(gunicorn: StartGunicorn) -> None:
        args = ("--protocol", "uwsgi", "--uwsgi-allow-from", "*")
        config = "cluster_sticky = ['hash:ip']\n"
        server = gunicorn(APP, "-k", ASGI, *ARGS, *args, config=config, wait=False)
        View(server).wait_slots(2)
        variables = {"REQUEST_METHOD": "GET", "PATH_INFO": "/who", "QUERY_STRING": ""}
        variables |= {"SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_URI": "/who"}
        block = b"".join(
            struct.pack("<H", len(word)) + word.encode()
            for pair in variables.items()
            for word in pair
        )
        with server.connect(timeout=30) as connection:
            connection.send(struct.pack("<BHB", 0, len(block), 0) + block)
            answer = connection.answer()
            who = answer.json()
        assert (who["path"], who["worker"]) == ("/who", rendezvous(b"127.0.0.1", range(2)))


# --- connections ---------------------------------------------------------------------------


def test_the_keepalive_timeout_of_a_connection_that_was_handed_over(site: StartSite) -> None:
    rolled = site(APP, worker_class=ASGI, workers=1, keepalive=2)
    with rolled.server.connect(timeout=30) as used, rolled.server.connect(timeout=30) as busy:
        for connection in (used, busy):
            assert connection.get("/").status == 200
        rolled.roll()
        rolled.view.wait_slots(1, generation=2)
        # One waits, and for the other it ends in the middle of a request.
        assert busy.get("/?sleep=3").status == 200
        assert used.closed_by_peer()


def test_work_after_an_answer_goes_on(site: StartSite) -> None:
    """It goes on though the next request has taken the connection to another worker."""
    served = site(APP, worker_class=ASGI, workers=2)
    with served.server.connect(timeout=30) as connection:
        assert connection.request("GET", "/later?s=5", cookie(0)).json()["worker"] == 0
        assert connection.request("GET", "/", cookie(1)).json()["worker"] == 1
        wait_note(served.directory, f"later {served.pids[0]}")


def wait_note(directory: Path, note: str) -> None:
    path = directory / "notes.txt"
    wait_until(lambda: path.exists() and note in path.read_text(), PATIENCE_S, note)


def test_a_unix_socket(gunicorn: StartGunicorn, new_directory: Any) -> None:
    bind = f"unix:{new_directory() / 'app.sock'}"
    server = gunicorn(APP, "-k", ASGI, *ARGS, bind=bind)
    view = View(server)
    view.wait_slots(2)
    body = b"through a socket" * 50_000
    with server.connect() as connection:
        for slot in (0, 1, 0):
            assert connection.request("GET", "/", cookie(slot)).json()["worker"] == slot
            answer = connection.request("POST", "/echo", cookie(1 - slot), body).json()
            assert (answer["worker"], answer["sha1"]) == (1 - slot, sha1(body))
    assert view.total("handed_in") >= 3


if gunicorn.version_info >= (26,):

    def test_proxy_protocol(gunicorn: StartGunicorn) -> None:
        """It names the client of the connection, whichever worker serves its later requests."""
        server = gunicorn(APP, "-k", ASGI, *ARGS, "--proxy-protocol", "v1", wait=False)
        view = View(server)
        view.wait_slots(2)
        header = b"PROXY TCP4 203.0.113.7 198.51.100.9 4321 80\r\n"
        for first in (0, 1):
            with server.connect() as connection:
                connection.send(header)
                for slot in (first, 1 - first, first, first):
                    who = connection.request("GET", "/", cookie(slot)).json()
                    assert who["worker"] == slot
                    assert who["client"] == "203.0.113.7"
                # Nobody can change it later.
                connection.send(header.replace(b"113.7", b"113.8") + request_bytes("GET", "/"))
                assert connection.answer().status == 400
        assert view.total("handed_in") >= 4


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_tls(gunicorn: StartGunicorn, certificate: Certificate, loop: str) -> None:
    args = (*certificate.gunicorn_options, "--asgi-loop", loop)
    config = "cluster_sticky = ['hash:ip', 'cookie']\n"
    server = gunicorn(APP, "-k", ASGI, *ARGS, *args, config=config, wait=False)
    view = View(server)
    view.wait_slots(2)
    trusting = ssl.create_default_context(cafile=str(certificate.path))
    body = b"secret" * 100_000
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", server.port), 30) as plain:
            with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
                wrapped.sendall(request_bytes("POST", "/echo", {"Connection": "close"}, body))
                answer = b"".join(iter(lambda: wrapped.recv(65536), b""))
        who = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (who["worker"], who["sha1"]) == (rendezvous(b"127.0.0.1", range(2)), sha1(body))
    wait_until(lambda: view.total("handed_in") > 0, PATIENCE_S, "hand-offs before the handshake")
    assert "cannot work with TLS" in server.log_text()
    kept = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=trusting)
    for _ in range(3):
        kept.request("POST", "/echo", body)
        assert json.loads(kept.getresponse().read())["sha1"] == sha1(body)
    kept.close()
    url, trusted = f"wss://127.0.0.1:{server.port}/websocket", {"ca_certs": str(certificate.path)}
    talk = websocket.create_connection(url, sslopt=trusted, timeout=10)
    assert "worker" in talk.recv()
    talk.send("hello")
    assert talk.recv() == "hello"
    talk.close()
    # A client that speaks plainly harms nobody.
    with server.connect() as connection:
        connection.send(request_bytes("GET", "/"))
        assert connection.closed_by_peer()
    wait_until(lambda: view.total("connections") == 0, PATIENCE_S, "no connections")
    server.stop()
    assert "Traceback" not in server.log_text()


# --- life ----------------------------------------------------------------------------------


def test_ready_after_startup(site: StartSite) -> None:
    """A process takes over when its application has started, not when it is loaded."""
    rolled = site("lifespan:app", worker_class=ASGI, raw_env=["STARTUP_S=1"])
    with rolled.load() as load:
        begun = time.monotonic()
        rolled.roll()
        assert time.monotonic() - begun > 3
    assert load.report.complaints() == []


def test_shutdown_after_the_last_request(site: StartSite) -> None:
    rolled = site(APP, worker_class=ASGI, workers=1)
    pid = rolled.pids[0]
    with rolled.server.connect(timeout=30) as slow:
        slow.send(request_bytes("GET", "/?sleep=2"))
        wait_until(lambda: rolled.view.total("busy") == 1, PATIENCE_S, "a request in progress")
        rolled.roll()
        assert f"shutdown {pid}" not in (rolled.directory / "notes.txt").read_text()
        assert slow.answer().json()["pid"] == pid
    wait_note(rolled.directory, f"shutdown {pid}")
    rolled.server.stop()
    notes = (rolled.directory / "notes.txt").read_text()
    assert notes.count("startup") == notes.count("shutdown") == 2


@pytest.mark.parametrize(("mode", "code"), [("on", 3), ("auto", None)])
def test_a_startup_that_fails(
    gunicorn: StartGunicorn, new_directory: Any, mode: str, code: int | None
) -> None:
    """As in gunicorn 27, an application without lifespan is served, unless lifespan is required."""
    server = gunicorn("whoami:app", "-k", ASGI, "--asgi-lifespan", mode, wait=False)
    if code is None:
        assert View(server).wait_slots(1)
        assert server.get("/").status == 200
    else:
        assert server.wait_exit(PATIENCE_S) == code
        assert "lifespan startup failed" in server.log_text()


def test_events_go_on_in_a_roll(site: StartSite) -> None:
    rolled = site(APP, worker_class=ASGI, workers=2)
    with ExitStack() as stack:
        streams = [stack.enter_context(rolled.server.connect(timeout=60)) for _ in range(4)]
        for number, stream in enumerate(streams):
            stream.send(request_bytes("GET", "/events?n=40&s=0.1", cookie(number % 2)))
        wait_until(lambda: rolled.view.total("busy") == 4, PATIENCE_S, "four streams")
        rolled.roll()
        for number, stream in enumerate(streams):
            body = stream.answer().body.decode()
            events = [json.loads(line[6:]) for line in body.split("\n\n") if line]
            assert [event["number"] for event in events] == list(range(40))
            assert {event["pid"] for event in events} == {rolled.pids[number % 2]}
            # The connection lives on, with the successor.
            answer = stream.request("GET", "/", cookie(number % 2)).json()
            assert answer["pid"] == rolled.view.pids()[number % 2]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["HUP", "TERM"])
def test_websockets_are_told_to_come_again(site: StartSite, loop: str, number: int) -> None:
    """They are closed when the drain timeout is over; until then they go on."""
    rolled = site(
        APP, worker_class=ASGI, cluster_drain_timeout=4, graceful_timeout=4, asgi_loop=loop
    )

    async def stay() -> tuple[Any, float, list[Any]]:
        async with aiohttp.ClientSession() as session:
            url = f"{rolled.server.url}/websocket"
            clients = [await session.ws_connect(url) for _ in range(6)]
            pids = [(await client.receive_json())["pid"] for client in clients]
            begun = time.monotonic()
            rolled.server.signal(number)
            ended = [await asyncio.wait_for(follow(client), 30) for client in clients]
            return pids, time.monotonic() - begun, ended

    async def follow(client: aiohttp.ClientWebSocketResponse) -> tuple[int, bool]:
        echoes = 0
        while True:
            with suppress(ConnectionResetError):  # closed since the last echo
                await client.send_str("echo")
            message = await client.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                return client.close_code or 0, echoes > 5
            echoes += 1
            await asyncio.sleep(0.05)

    pids, seconds, ended = asyncio.run(stay())
    assert set(pids) <= set(rolled.pids.values())
    assert ended[0] == (1012, True)
    assert {code for code, _ in ended} == {1012}
    assert 2 < seconds < 20
    for pid in set(pids):
        wait_note(rolled.directory, f"shutdown {pid}")
        notes = (rolled.directory / "notes.txt").read_text()
        assert re.search(rf"websocket \d+ {pid}", notes) or not NEWEST


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["INT", "QUIT"])
def test_quick_ends(site: StartSite, number: int) -> None:
    """As in gunicorn's own worker, neither requests nor the application are waited for."""
    ended = site(APP, worker_class=ASGI)
    with ended.server.connect(timeout=30) as slow:
        slow.send(request_bytes("GET", "/?sleep=600"))
        wait_until(lambda: ended.view.total("busy") == 1, PATIENCE_S, "a request in progress")
        ended.server.signal(number)
        ended.server.wait_exit(15)
    assert not any(psutil.pid_exists(pid) for pid in ended.pids.values())
    assert "shutdown" not in (ended.directory / "notes.txt").read_text()


def test_a_worker_whose_event_loop_hangs_gets_no_new_connections(site: StartSite) -> None:
    hung = site(APP, worker_class=ASGI, workers=2, timeout=60)
    os.kill(hung.pids[0], signal.SIGSTOP)
    try:
        answers = [hung.server.get("/").json()["worker"] for _ in range(10)]
    finally:
        os.kill(hung.pids[0], signal.SIGCONT)
    assert set(answers) == {1}
