"""The application that every contender serves: a few lines of WSGI, and the same for ASGI.

Each request names in ``X-Expect`` the process that it should reach, and any other process
answers 421. So the application checks the routing of every measured request, at the same
cost for every contender.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

ANYONE = "anyone"
PAUSE_PATH = "/pause"
PAUSE_SECONDS = 0.05

BODY = b"hello, world\n"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    worker = str(os.getpid())
    expected = environ.get("HTTP_X_EXPECT", ANYONE)
    if environ["PATH_INFO"] == PAUSE_PATH:
        time.sleep(PAUSE_SECONDS)
    right = expected in (worker, ANYONE)
    start_response(
        "200 OK" if right else "421 Misdirected Request",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(BODY))),
            ("X-Worker", worker),
        ],
    )
    return [BODY]


async def asgi(
    scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    worker = str(os.getpid())
    expected = ANYONE
    for name, value in scope["headers"]:
        if name == b"x-expect":
            expected = value.decode()
    if scope["path"] == PAUSE_PATH:
        await asyncio.sleep(PAUSE_SECONDS)
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"%d" % len(BODY)),
        (b"x-worker", worker.encode()),
    ]
    status = 200 if expected in (worker, ANYONE) else 421
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
