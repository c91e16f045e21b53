"""What the pack adds to each request and response of an ASGI application.

``scope["gunicorn_cluster.worker_id"]`` is set for the application, and our cookie in responses
that need it: also in the one that accepts, or denies, a WebSocket. The learn rules hear each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.routing.responses import WORKER_ID, Learner, Tagging, is_public

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The messages that carry the headers of a response.
_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))


class Tagged:
    """An ASGI application whose requests and responses know their worker."""

    def __init__(self, app: App, tagging: Tagging) -> None:
        self.app = app
        self._tagging = tagging

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            tagging = self._tagging
            scope[WORKER_ID] = tagging.slot
            if tagging.learner is not None:
                send = _heard(tagging.learner, send)
            if tagging.sets_cookie and not tagging.is_settled(cookie_header(scope)):
                cookie = tagging.cookie(secure=scope.get("scheme") in ("https", "wss"))
                send = _setting(cookie, send)
        await self.app(scope, receive, send)


def cookie_header(scope: Scope) -> str:
    """The cookies of a request. HTTP/2 may send each as a header of its own (RFC 9113)."""
    lines = [value for name, value in scope["headers"] if name == b"cookie"]
    return b"; ".join(lines).decode("latin-1")


# The functions below only pass on what is to be awaited: a coroutine of our own for each message
# would cost, and do nothing.


def _setting(cookie: str, send: Send) -> Send:
    header = (b"set-cookie", cookie.encode("latin-1"))

    def send_with_cookie(message: Message) -> Awaitable[None]:
        if message["type"] in _STARTS:
            headers = list(message.get("headers", ()))
            if not is_public(decoded(headers)):
                message = {**message, "headers": [*headers, header]}
        return send(message)

    return send_with_cookie


def _heard(learner: Learner, send: Send) -> Send:
    def send_and_learn(message: Message) -> Awaitable[None]:
        if message["type"] in _STARTS:
            headers = list(message.get("headers", ()))
            learner.hear(decoded(headers))
            message = {**message, "headers": headers}
        return send(message)

    return send_and_learn


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
