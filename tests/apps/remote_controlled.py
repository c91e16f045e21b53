"""A Socket.IO server that does what its clients say, on the worker that a client is on."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import socketio  # type: ignore[import-untyped]

import gunicorn_cluster_ext
from gunicorn_cluster_ext.socketio import ClusterManager

NAMESPACES = ("/", "/other")

server = socketio.Server(async_mode="threading", client_manager=ClusterManager())


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


def ask(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """GET /SID: who asks that client, and what it answers."""
    answer = server.call("question", "who?", to=environ["PATH_INFO"][1:], timeout=20)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([gunicorn_cluster_ext.worker_id(), answer]).encode()]


app = socketio.WSGIApp(server, ask)
