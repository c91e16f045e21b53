"""Sessions for ASGI applications."""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext.logs import log
from gunicorn_cluster_ext.routing.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    cookie_header,
    text_headers,
)
from gunicorn_cluster_ext.session.middleware import (
    UNAVAILABLE,
    UNAVAILABLE_HEADERS,
    Headers,
    Sessions,
)
from gunicorn_cluster_ext.session.session import Session, SessionAway
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.handles import Stores


class ASGISessionMiddleware:
    """Middleware around an ASGI application, for HTTP and WebSocket.

    ``scope["session"]`` is used without ``await``. The embedded store answers in microseconds and
    is asked when the session is first used. Any other store is asked before the application runs,
    if the request has a session cookie, so that the event loop never waits for a network. With
    ``prefetch=False`` the application does that: ``await request.session.aload()``.
    """

    def __init__(
        self,
        app: App,
        *,
        prefetch: bool = True,
        stores: Stores = handles.default,
        **overrides: Any,
    ) -> None:
        self.app = app
        self.prefetch = prefetch
        self.sessions = Sessions(stores, overrides)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        session = scope["session"] = self.sessions.open(cookie_header(scope))
        if not self.sessions.stores.is_local:
            await session.prepare(load=self.prefetch)
        response = _Response(self.sessions, session, scope, send)
        try:
            await self.app(scope, receive, response.send)
        except SessionAway:
            if response.begun:
                raise
            await response.refuse()
        if scope["type"] == "websocket" and not response.refused:
            await response.save_late()


class _Response:
    """One response or WebSocket: the application's ``send``, and a refusal in its place."""

    def __init__(self, sessions: Sessions, session: Session, scope: Scope, send: Send) -> None:
        self.begun = False
        self.refused = False
        self._sessions = sessions
        self._session = session
        self._scope = scope
        self._send = send

    async def send(self, message: Message) -> None:
        """The application's ``send``."""
        if self.refused:
            return
        if message["type"] in ("http.response.start", "websocket.accept"):
            if self._session.failed and message.get("status", 200) >= 500:
                await self.refuse()
                return
            self.begun = True
            try:
                saved = await self._session.asave(last=self._scope["type"] == "http")
            except SessionAway:
                await self.refuse()
                return
            headers = list(message.get("headers", ()))
            scheme = self._scope.get("scheme", "http")
            ours = self._sessions.headers(self._session, saved, scheme, text_headers(headers))
            message = {**message, "headers": [*headers, *_encoded(ours)]}
        await self._send(message)

    async def refuse(self) -> None:
        self.begun = self.refused = True
        if self._scope["type"] == "websocket":
            await self._send({"type": "websocket.close", "code": 1013, "reason": ""})
            return
        body = b"" if self._scope["method"] == "HEAD" else UNAVAILABLE
        headers = _encoded(UNAVAILABLE_HEADERS)
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def save_late(self) -> None:
        """Save what was changed since a WebSocket was accepted."""
        try:
            await self._session.asave()
        except SessionAway as error:
            log.warning("The changes that a WebSocket made to its session are lost: %s", error)


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
