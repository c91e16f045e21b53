"""A chat on several workers: every message names its worker and reaches every client.

    gunicorn -k gunicorn_cluster_ext.Sticky -w 4 --chdir examples chat:app

This is enough on one machine. For several machines or servers, name a Redis that they share:

    GUNICORN_CLUSTER_STORE=redis://host:port/0 gunicorn -k gunicorn_cluster_ext.Sticky ...
"""

import os
from typing import Any

from flask import Flask, Response
from flask_socketio import SocketIO, emit

import gunicorn_cluster_ext
from gunicorn_cluster_ext.socketio import ClusterManager

app = Flask(__name__)
socketio = SocketIO(app, async_mode="threading", client_manager=ClusterManager())


@app.get("/")
def page() -> Response:
    return app.send_static_file("chat.html")


@socketio.on("connect")
def greet() -> None:
    emit("welcome", {"worker": gunicorn_cluster_ext.worker_id()})


@socketio.on("say")
def say(text: str) -> None:
    message = {"text": str(text)[:500], "worker": gunicorn_cluster_ext.worker_id()}
    emit("said", message, broadcast=True)


@socketio.on("call")
def call(number: int) -> dict[str, Any]:
    """Answer only the caller, by Socket.IO's acknowledgement."""
    return {"number": number, "worker": gunicorn_cluster_ext.worker_id(), "pid": os.getpid()}
