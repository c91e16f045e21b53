"""What an asgi application may do to its server; other paths are those of whoami.

/websocket           says who it is, then echoes
/echo                says what body it was sent
/events?n=COUNT&s=SECONDS   sends so many events, with a pause before each
/big?bytes=COUNT     answers with that many bytes
/later?s=SECONDS     answers, and goes on for a while
/raise               fails

What has ended is noted in "notes.txt".
"""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import whoami
from wsgi_and_asgi import Receive, Scope, Send, answer, read

from gunicorn_cluster_ext import worker_id


def who() -> dict[str, Any]:
    return {"worker": worker_id(), "pid": os.getpid()}


async def websocket(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(who())})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    note(f"websocket {message['code']}")


async def events(query: dict[str, list[str]], send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(int(query["n"][0])):
        await asyncio.sleep(float(query["s"][0]))
        event = json.dumps({"number": number, **who()})
        body = f"data: {event}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})


async def later(query: dict[str, list[str]], send: Send) -> None:
    await answer(send, json.dumps(who()).encode())
    await asyncio.sleep(float(query["s"][0]))
    note("later")


async def echo(receive: Receive, send: Send) -> None:
    body = await read(receive)
    seen = {"length": len(body), "sha1": hashlib.sha1(body).hexdigest(), **who()}
    await answer(send, json.dumps(seen).encode())


async def live(receive: Receive, send: Send) -> None:
    await receive()
    note("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    note("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


def note(what: str) -> None:
    with Path("notes.txt").open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["type"] == "websocket":
        await websocket(receive, send)
        return
    query = parse_qs(scope["query_string"].decode())
    path = scope["path"]
    if path == "/events":
        await events(query, send)
    elif path == "/later":
        await later(query, send)
    elif path == "/echo":
        await echo(receive, send)
    elif path == "/big":
        await answer(send, b"x" * int(query["bytes"][0]))
    elif path == "/raise":
        raise RuntimeError("the application fails")
    else:
        await whoami.asgi(scope, receive, send)
