"""An ASGI application that says which worker answers, by each name that the worker has."""

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from gunicorn_cluster_ext import worker_id

Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    who = {
        "pid": os.getpid(),
        "worker_id": worker_id(),
        "scope": scope.get("gunicorn_cluster.worker_id"),
    }
    body = json.dumps(who).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
