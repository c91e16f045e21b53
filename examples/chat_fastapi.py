"""The same chat in an event loop: FastAPI, wrapped in python-socketio's ASGI application.

    gunicorn -k gunicorn_cluster_ext.StickyASGI -w 4 --chdir examples chat_fastapi:app

On several machines, name a Redis that they share: GUNICORN_CLUSTER_STORE=redis://host:port/0
"""

import os
from pathlib import Path
from typing import Any

import socketio
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

import gunicorn_cluster_ext
from gunicorn_cluster_ext.socketio import AsyncClusterManager

STATIC = Path(__file__).parent / "static"

api = FastAPI()
api.mount("/static", StaticFiles(directory=STATIC))
server = socketio.AsyncServer(async_mode="asgi", client_manager=AsyncClusterManager())
app = socketio.ASGIApp(server, api)


@api.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "chat.html")


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await server.emit("welcome", {"worker": gunicorn_cluster_ext.worker_id()}, to=sid)


@server.event
async def say(sid: str, text: str) -> None:
    message = {"text": str(text)[:500], "worker": gunicorn_cluster_ext.worker_id()}
    await server.emit("said", message)


@server.event
async def call(sid: str, number: int) -> dict[str, Any]:
    """Answer only the caller, by Socket.IO's acknowledgement."""
    return {"number": number, "worker": gunicorn_cluster_ext.worker_id(), "pid": os.getpid()}
