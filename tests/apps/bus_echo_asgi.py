"""As bus_echo.py, in event loops."""

import asyncio
import itertools
import os
import time
from typing import Any
from urllib.parse import parse_qsl

import bus_echo
from bus_echo import Query, message

from gunicorn_cluster_ext import bus


async def tell(query: Query) -> Any:
    sizes = [int(size) for size in query["sizes"].split(",")]
    count = int(query.get("count", len(sizes)))
    sent: dict[int, list[int]] = {}

    async def run(thread: int) -> None:
        sent[thread] = [
            await bus.apublish("echo", message(thread, number, sizes[number % len(sizes)]))
            for number in range(count)
        ]

    begun = time.monotonic()
    await asyncio.gather(*(run(number) for number in range(int(query["threads"]))))
    return {"sent": sent, "seconds": time.monotonic() - begun}


async def chatter() -> None:
    """As bus_echo.chatter does."""
    bus.subscribe("chatter", bus_echo.note)
    bus_echo.write(f"listens {time.monotonic()}")
    for number in itertools.count():
        size = 70_000 if number % 10 == 0 else 100
        if number == 0:
            bus_echo.write(f"begins {time.monotonic()}")
        await bus.apublish("chatter", b"%d %d %s" % (os.getpid(), number, bytes(size)))
        bus_echo.write(f"said {number}")
        await asyncio.sleep(0.005)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        what = os.environ.get("BUS_ECHO_ASGI")
        if what == "listen":
            bus_echo.listen({})
        task = asyncio.create_task(chatter()) if what == "chatter" else None
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if task is not None:
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    if scope["path"] == "/tell" and bus_echo.is_for_me(query):
        body = bus_echo.wrapped(await tell(query))
    else:
        body = bus_echo.answer(scope["path"], query)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
