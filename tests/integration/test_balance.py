"""Requests of nobody go to who has least to do."""

import asyncio
from collections import Counter

import aiohttp
import pytest

from tests.conftest import StartGunicorn
from tests.harness.connection import request_bytes
from tests.harness.waiting import wait_until
from tests.integration.view import ASGI, PATIENCE_S, STICKY, View

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


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_websockets_are_spread(gunicorn: StartGunicorn, loop: str) -> None:
    """However the kernel spreads their connections."""
    server = gunicorn("manners_asgi:app", "-k", ASGI, "-w", "4", "--asgi-loop", loop)
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
