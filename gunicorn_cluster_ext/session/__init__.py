"""Sessions that all workers share, for WSGI and ASGI applications.

    app = SessionMiddleware(app)        # environ["gunicorn_cluster.session"]
    app = ASGISessionMiddleware(app)    # scope["session"], Starlette's request.session

The session is a dictionary; what it does with its changes stands in ``record``. Settings are those
of the server (``cluster_session_*``); each may be given here by the rest of its name, such as
``idle=3600``.

It is saved when the response begins, for its cookie must be in the head. When the store is away,
a request that touches the session is answered 503 with ``Retry-After``; if the application turns
the exception (SessionAway) into an answer of its own below 500, that is sent.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from gunicorn_cluster_ext.routing.responses import is_public
from gunicorn_cluster_ext.runtime import context as process
from gunicorn_cluster_ext.runtime.context import Stores, log
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.session.session import Limits, Outcome, Session, SessionAway
from gunicorn_cluster_ext.settings import Settings

__all__ = ["ASGISessionMiddleware", "Session", "SessionAway", "SessionMiddleware"]

KEY = "gunicorn_cluster.session"
RETRY_AFTER_S = "2"
UNAVAILABLE = b"The sessions cannot be reached at the moment. Please try again.\n"
UNAVAILABLE_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(UNAVAILABLE))),
    ("Retry-After", RETRY_AFTER_S),
    ("Cache-Control", "no-store"),
]

Headers = list[tuple[str, str]]


class Sessions:
    """Makes sessions of requests, and headers of sessions."""

    def __init__(self, stores: Stores, overrides: dict[str, Any]) -> None:
        self.stores = stores
        self._overrides = {f"session_{name}": value for name, value in overrides.items()}
        # A bad value is an error here, not in the first request.
        SessionCookie.of(Settings(**self._overrides))

    @functools.cached_property
    def _policy(self) -> tuple[SessionCookie, Limits]:
        """Found late: a preloaded application is made before there is a worker."""
        settings = process.with_settings(self._overrides)
        return SessionCookie.of(settings), Limits.of(settings)

    def open(self, header: str) -> Session:
        """The session of a request with this ``Cookie`` header."""
        cookie, limits = self._policy
        return Session(self.stores, limits, cookie.find(header) if header else None)

    def headers(
        self, session: Session, saved: tuple[Outcome, str], scheme: str, given: Headers
    ) -> Headers:
        """What a response gets that has the headers ``given``."""
        outcome, sid = saved
        headers = [("Vary", "Cookie")] if session.accessed else []
        if outcome is Outcome.PUT:
            headers.append(("Set-Cookie", self._policy[0].put(sid, scheme)))
        elif outcome is Outcome.REMOVE:
            headers.append(("Set-Cookie", self._policy[0].remove(scheme)))
        # Or it would hand one client's cookie to all.
        if outcome is not Outcome.KEEP and is_public(given):
            headers.append(("Cache-Control", "private"))
        return headers


class SessionMiddleware:
    """Around a WSGI application."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        *,
        stores: Stores = process.default,
        **overrides: Any,
    ) -> None:
        self.app = app
        self.sessions = Sessions(stores, overrides)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session = environ[KEY] = self.sessions.open(environ.get("HTTP_COOKIE", ""))
        answer = _Answer(self.sessions, session, environ, start_response)
        try:
            body = self.app(environ, answer.start)
        except SessionAway:
            if answer.begun:
                raise
            return answer.refuse()
        return body if answer.begun and not answer.refused else answer.rest(body)


class _Answer:
    """One response: its ``start_response``, and what to send instead."""

    def __init__(
        self, sessions: Sessions, session: Session, environ: dict[str, Any], start_response: Any
    ) -> None:
        self.begun = False
        self.refused = False
        self._sessions = sessions
        self._session = session
        self._environ = environ
        self._start_response = start_response
        self._headers: Headers | None = None

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        """The application's ``start_response``."""
        self.begun = True
        if self._session.failed and status >= "5":
            return self._refuse(exc_info)
        try:
            ours = self._save(headers)
        except SessionAway:
            return self._refuse(exc_info)
        return self._start(status, [*headers, *ours], exc_info)

    def _save(self, headers: Headers) -> Headers:
        """Once; an application that begins anew after an error gets the same cookie."""
        if self._headers is None:
            scheme = self._environ.get("wsgi.url_scheme", "http")
            saved = self._session.save()
            self._headers = self._sessions.headers(self._session, saved, scheme, headers)
        return self._headers

    def _start(self, status: str, headers: Headers, exc_info: Any) -> Any:
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def _refuse(self, exc_info: Any = None) -> Callable[[bytes], None]:
        """Start a 503; what the application writes is dropped."""
        self.begun = self.refused = True
        self._start("503 Service Unavailable", list(UNAVAILABLE_HEADERS), exc_info)
        return lambda data: None

    def refuse(self) -> list[bytes]:
        self._refuse()
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [UNAVAILABLE]

    def rest(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """The body of an application that is refused, or that begins only when it is iterated."""
        try:
            if not self.refused:
                yield from self._chunks(body)
        except SessionAway:
            if self.begun:
                raise
            self._refuse()
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        if self.refused and self._environ.get("REQUEST_METHOD") != "HEAD":
            yield UNAVAILABLE

    def _chunks(self, body: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in body:
            if self.refused:
                return
            yield chunk


Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ASGISessionMiddleware:
    """Around an ASGI application, HTTP and WebSocket.

    ``scope["session"]`` is used without ``await``. The embedded store answers in microseconds and
    is asked when the session is first touched. Any other is asked before the application runs, if
    the request has a session cookie, so that the event loop never waits for a network;
    ``prefetch=False`` leaves that to the application: ``await request.session.aload()``.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        prefetch: bool = True,
        stores: Stores = process.default,
        **overrides: Any,
    ) -> None:
        self.app = app
        self.prefetch = prefetch
        self.sessions = Sessions(stores, overrides)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        session = scope["session"] = self.sessions.open(_cookies(scope))
        if not self.sessions.stores.is_local:
            await session.prepare(load=self.prefetch)
        answer = _AsyncAnswer(self.sessions, session, scope, send)
        try:
            await self.app(scope, receive, answer.send)
        except SessionAway:
            if answer.begun:
                raise
            await answer.refuse()
        if scope["type"] == "websocket" and not answer.refused:
            await answer.save_late()


def _cookies(scope: dict[str, Any]) -> str:
    """HTTP/2 may split the header."""
    values = [value for name, value in scope["headers"] if name == b"cookie"]
    return b"; ".join(values).decode("latin-1")


class _AsyncAnswer:
    """One response, or one WebSocket: its ``send``, and what to send instead."""

    def __init__(
        self, sessions: Sessions, session: Session, scope: dict[str, Any], send: Send
    ) -> None:
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
            message = await self._begin(message)
        if not self.refused:
            await self._send(message)

    async def _begin(self, message: Message) -> Message:
        if self._session.failed and message.get("status", 200) >= 500:
            await self.refuse()
            return message
        self.begun = True
        headers = list(message.get("headers", ()))
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        try:
            saved = await self._session.asave(last=self._scope["type"] == "http")
        except SessionAway:
            await self.refuse()
            return message
        scheme = self._scope.get("scheme", "http")
        ours = self._sessions.headers(self._session, saved, scheme, given)
        return {**message, "headers": [*headers, *_encoded(ours)]}

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
        """What was changed since a WebSocket was accepted."""
        try:
            await self._session.asave()
        except SessionAway as error:
            log.warning("What a WebSocket changed in its session is lost: %s", error)


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
