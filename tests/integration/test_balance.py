"""Requests of nobody go to who has least to do."""

import asyncio
from collections import Counter
from contextlib import ExitStack

import aiohttp
import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import ASGI, GEVENT, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

COOKIE = "gunicorn_worker"


def test_a_request_of_nobody_does_not_wait_for_a_busy_worker(gunicorn: StartGunicorn) -> None:
    """On gthread it waits, while its siblings idle."""
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "4", "--threads", "1")
    view = View(server)
    view.wait_slots(4)
    with server.connect(timeout=60) as slow, server.connect(timeout=60) as other:
        for connection in (slow, other):  # both are with worker 1 now
            assert connection.get("/", cookie=f"{COOKIE}=1").json()["worker"] == 1
        slow.send(request_bytes("GET", "/?sleep=5", {"Cookie": f"{COOKIE}=1"}))
        wait_until(lambda: view.slots()[1].words["busy"] == 1, PATIENCE_S, "a busy worker 1")
        assert other.get("/").json()["worker"] != 1
        assert len({server.get("/").json()["worker"] for _ in range(20)} & {1}) == 0
        assert view.slots()[1].words["busy"] == 1, "too late to tell"
        assert slow.answer().json()["worker"] == 1


def test_a_request_of_nobody_does_not_wait_for_the_processor(gunicorn: StartGunicorn) -> None:
    """On gevent it waits for each greenlet that does not wait itself, while siblings idle.

    On a busy machine siblings may look as slow, so more than one attempt is allowed.
    """
    server = gunicorn("whoami:app", "-k", GEVENT, "-w", "4")
    view = View(server)
    view.wait_slots(4)
    wait_until(lambda: 1 not in who_serves_behind(server, view), PATIENCE_S, "the others to serve")


def who_serves_behind(server: Gunicorn, view: View) -> set[int]:
    """The workers that serve three requests of nobody which came behind a long one of worker 1."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect(timeout=60)) for _ in range(4)]
        for connection in connections:  # all are with worker 1 now
            assert connection.get("/", cookie=f"{COOKIE}=1").json()["worker"] == 1
        first, *others = connections
        first.send(request_bytes("GET", "/?burn=2", {"Cookie": f"{COOKIE}=1"}))
        # From now on nobody reads what comes, until that is served.
        wait_until(lambda: view.slots()[1].words["busy"] == 1, PATIENCE_S, "a busy worker 1")
        for connection in others:
            connection.send(request_bytes("GET", "/?burn=0.5"))
        assert first.answer().json()["worker"] == 1
        return {connection.answer().json()["worker"] for connection in others}


@pytest.mark.one_gunicorn
@pytest.mark.parametrize(
    "args",
    [
        ("misbehaving_asgi:app", "-k", ASGI, "--asgi-loop", "uvloop"),
        ("misbehaving_asgi:app", "-k", ASGI, "--asgi-loop", "asyncio"),
        ("misbehaving:app", "-k", GEVENT),
        ("misbehaving:app", "-k", STICKY, "--threads", "200"),
    ],
    ids=["uvloop", "asyncio", "gevent", "threads"],
)
def test_websockets_are_spread(gunicorn: StartGunicorn, args: tuple[str, ...]) -> None:
    """However the kernel spreads their connections."""
    server = gunicorn(*args, "-w", "4")
    view = View(server)
    view.wait_slots(4)
    workers = asyncio.run(connect_all(f"{server.url}/websocket", 500))
    assert sorted(workers) == [0, 1, 2, 3]
    assert 100 <= min(workers.values()) <= max(workers.values()) <= 150, workers
    wait_until(lambda: view.total("websockets") == 0, PATIENCE_S, "no WebSockets")


async def connect_all(url: str, clients: int) -> Counter[int]:
    """All connect at once and stay until all have heard from their workers; who these are."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = await asyncio.gather(*(session.ws_connect(url) for _ in range(clients)))
        greetings = [await socket.receive_json() for socket in sockets]
        for socket in sockets:
            await socket.send_str("echo")
        assert {await socket.receive_str() for socket in sockets} == {"echo"}
        await asyncio.gather(*(socket.close() for socket in sockets))
        return Counter(greeting["worker"] for greeting in greetings)
