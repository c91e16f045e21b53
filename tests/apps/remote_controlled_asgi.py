"""The same for an event loop."""

from typing import Any

import socketio  # type: ignore[import-untyped]

import gunicorn_cluster_ext
from gunicorn_cluster_ext.socketio import AsyncClusterManager

NAMESPACES = ("/", "/other")

server = socketio.AsyncServer(async_mode="asgi", client_manager=AsyncClusterManager())
app = socketio.ASGIApp(server)


async def where(sid: str) -> int | None:
    return gunicorn_cluster_ext.worker_id()


async def do(sid: str, method: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    answer = getattr(server, method)(*arguments, **options)
    return await answer if hasattr(answer, "__await__") else answer


async def emit_several(sid: str, event: str, values: list[Any]) -> None:
    await server.emit(event, tuple(values))


async def leave(sid: str, reason: str = "") -> None:
    await server.emit("left", [sid, gunicorn_cluster_ext.worker_id()])


for namespace in NAMESPACES:
    server.on("where", where, namespace=namespace)
    server.on("do", do, namespace=namespace)
    server.on("emit_several", emit_several, namespace=namespace)
    server.on("disconnect", leave, namespace=namespace)
