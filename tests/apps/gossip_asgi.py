"""As gossip.py, in event loops."""

import asyncio
import time
from typing import Any
from urllib.parse import parse_qsl

import gossip
from gossip import Query, message

from gunicorn_cluster_ext import bus


async def tell(query: Query) -> Any:
    sizes = [int(size) for size in query["sizes"].split(",")]
    count = int(query.get("count", len(sizes)))
    sent: dict[int, list[int]] = {}

    async def run(thread: int) -> None:
        sent[thread] = [
            await bus.apublish("gossip", message(thread, number, sizes[number % len(sizes)]))
            for number in range(count)
        ]

    begun = time.monotonic()
    await asyncio.gather(*(run(number) for number in range(int(query["threads"]))))
    return {"sent": sent, "seconds": time.monotonic() - begun}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        gossip.listen({})
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    if scope["path"] == "/tell" and gossip.is_for_me(query):
        body = gossip.wrapped(await tell(query))
    else:
        body = gossip.answer(scope["path"], query)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
