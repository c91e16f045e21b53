"""The chat's calls in Flask-SocketIO's gevent mode."""

import chat  # type: ignore[import-not-found]
from flask import Flask
from flask_socketio import SocketIO

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")
socketio.on("call")(chat.call)
