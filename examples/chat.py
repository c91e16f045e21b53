"""A chat on several workers: every message says which worker served it.

    gunicorn -k gunicorn_cluster_ext.Sticky -w 4 --chdir examples chat:app

A worker broadcasts to the clients that are connected to it. For a message to
reach the clients of the other workers too, the workers need a queue between
them: give the address of a Redis server as CHAT_REDIS=redis://host:port/0.
"""

import os
from typing import Any

from flask import Flask, Response
from flask_socketio import SocketIO, emit

import gunicorn_cluster_ext

app = Flask(__name__)
socketio = SocketIO(app, async_mode="threading", message_queue=os.environ.get("CHAT_REDIS"))


@app.get("/")
def page() -> Response:
    return app.send_static_file("chat.html")


@socketio.on("connect")
def greet() -> None:
    emit(
        "welcome",
        {"worker": gunicorn_cluster_ext.worker_id(), "shared": "CHAT_REDIS" in os.environ},
    )


@socketio.on("say")
def say(text: str) -> None:
    message = {"text": str(text)[:500], "worker": gunicorn_cluster_ext.worker_id()}
    emit("said", message, broadcast=True)


@socketio.on("call")
def call(number: int) -> dict[str, Any]:
    """Answers the caller alone, as Socket.IO's acknowledgement."""
    return {"number": number, "worker": gunicorn_cluster_ext.worker_id(), "pid": os.getpid()}
