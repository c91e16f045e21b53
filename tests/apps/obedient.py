"""A Socket.IO server that does what its clients say, on the worker that a client is on."""

from typing import Any

import socketio  # type: ignore[import-untyped]

import gunicorn_cluster_ext
from gunicorn_cluster_ext.socketio import ClusterManager

NAMESPACES = ("/", "/other")

server = socketio.Server(async_mode="threading", client_manager=ClusterManager())
app = socketio.WSGIApp(server)


def where(sid: str) -> int | None:
    return gunicorn_cluster_ext.worker_id()


def do(sid: str, method: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """Call any method of the server."""
    return getattr(server, method)(*arguments, **options)


def emit_several(sid: str, event: str, values: list[Any]) -> None:
    server.emit(event, tuple(values))


def leave(sid: str, reason: str = "") -> None:
    server.emit("left", [sid, gunicorn_cluster_ext.worker_id()])


for namespace in NAMESPACES:
    server.on("where", where, namespace=namespace)
    server.on("do", do, namespace=namespace)
    server.on("emit_several", emit_several, namespace=namespace)
    server.on("disconnect", leave, namespace=namespace)
