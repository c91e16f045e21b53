"""The chat with a short long-poll: a client that is lost finds out in seconds."""

import os
from typing import Any

import chat  # type: ignore[import-not-found]
import socketio  # type: ignore[import-untyped]
from wsgi_and_asgi import Both

from gunicorn_cluster_ext import worker_id

__all__ = ["app"]

PING_S = 2

chat.socketio.server.eio.ping_interval = PING_S

server = socketio.AsyncServer(async_mode="asgi", ping_interval=PING_S)


@server.on("call")
def call(sid: str, number: int) -> dict[str, Any]:
    return {"number": number, "worker": worker_id(), "pid": os.getpid()}


app = Both(chat.app, socketio.ASGIApp(server))
