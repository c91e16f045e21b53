"""The chat with a short long-poll: a client that is lost finds out in seconds."""

from chat import app, socketio  # type: ignore[import-not-found]

__all__ = ["app"]

socketio.server.eio.ping_interval = 2
