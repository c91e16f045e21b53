"""Sessions for WSGI applications."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gunicorn_cluster_ext.session.middleware import (
    ENVIRON_KEY,
    UNAVAILABLE,
    UNAVAILABLE_HEADERS,
    Headers,
    Sessions,
)
from gunicorn_cluster_ext.session.session import Session, SessionAway
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.handles import Stores


class SessionMiddleware:
    """Middleware around a WSGI application."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        *,
        stores: Stores = handles.default,
        **overrides: Any,
    ) -> None:
        self.app = app
        self.sessions = Sessions(stores, overrides)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        session = environ[ENVIRON_KEY] = self.sessions.open(environ.get("HTTP_COOKIE", ""))
        response = _Response(self.sessions, session, environ, start_response)
        try:
            body = self.app(environ, response.start)
        except SessionAway:
            if response.begun:
                raise
            return response.refuse()
        return body if response.begun and not response.refused else response.rest(body)


class _Response:
    """One response: the ``start_response`` of the application, and a 503 in its place."""

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
        if self._headers is None:
            # Once: an application that starts again after an error gets the same cookie.
            try:
                saved = self._session.save()
            except SessionAway:
                return self._refuse(exc_info)
            scheme = self._environ.get("wsgi.url_scheme", "http")
            self._headers = self._sessions.headers(self._session, saved, scheme, headers)
        return self._start(status, [*headers, *self._headers], exc_info)

    def _start(self, status: str, headers: Headers, exc_info: Any) -> Any:
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def _refuse(self, exc_info: Any = None) -> Callable[[bytes], None]:
        """Start a response 503, and drop what the application writes."""
        self.begun = self.refused = True
        self._start("503 Service Unavailable", list(UNAVAILABLE_HEADERS), exc_info)
        return lambda data: None

    def refuse(self) -> list[bytes]:
        self._refuse()
        return [] if self._environ.get("REQUEST_METHOD") == "HEAD" else [UNAVAILABLE]

    def rest(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the body of an application that is refused, or starts only when it is iterated."""
        try:
            for chunk in () if self.refused else body:
                if self.refused:
                    break
                yield chunk
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
