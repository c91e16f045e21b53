"""The innermost middleware around an ASGI application: the worker's id, cookie and learn rules.

It sets ``scope["gunicorn_cluster.worker_id"]`` for the application. The responses that accept or
deny a WebSocket are treated like those to HTTP requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.routing.responses import WORKER_ID, Affinity, Learner, is_public

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The messages that carry the headers of a response.
_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))


class AffinityMiddleware:
    """Binds the clients of ``app`` to this worker."""

    def __init__(self, app: App, affinity: Affinity) -> None:
        self.app = app
        self._affinity = affinity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            affinity = self._affinity
            scope[WORKER_ID] = affinity.slot
            if affinity.learner is not None:
                send = _learning(affinity.learner, send)
            if affinity.sets_cookie and not affinity.is_settled(cookie_header(scope)):
                cookie = affinity.set_cookie(secure=scope.get("scheme") in ("https", "wss"))
                send = _setting_cookie(cookie, send)
        await self.app(scope, receive, send)


def cookie_header(scope: Scope) -> str:
    """Return the cookies of a request. HTTP/2 may split them into several headers (RFC 9113)."""
    lines = [value for name, value in scope["headers"] if name == b"cookie"]
    return b"; ".join(lines).decode("latin-1")


def text_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Return the headers of a message as text."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


# The two functions below return the awaitable of ``send`` itself: a coroutine of our own for each
# message would cost time and do nothing.


def _setting_cookie(cookie: str, send: Send) -> Send:
    header = (b"set-cookie", cookie.encode("latin-1"))

    def send_with_cookie(message: Message) -> Awaitable[None]:
        if message["type"] in _STARTS:
            headers = list(message.get("headers", ()))
            if not is_public(text_headers(headers)):
                message = {**message, "headers": [*headers, header]}
        return send(message)

    return send_with_cookie


def _learning(learner: Learner, send: Send) -> Send:
    def send_and_learn(message: Message) -> Awaitable[None]:
        if message["type"] in _STARTS:
            headers = list(message.get("headers", ()))
            learner.read(text_headers(headers))
            message = {**message, "headers": headers}
        return send(message)

    return send_and_learn
