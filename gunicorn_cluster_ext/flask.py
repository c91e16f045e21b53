"""``flask.session`` for all workers.

    ClusterSession(app)
    login: session.clear(), or session.regenerate(); then session["user"] = ...

The cookie follows Flask's configuration (``SESSION_COOKIE_*``), but is ``SameSite=Lax`` by default,
and ``Secure`` on https. The server keeps a session for ``cluster_session_idle`` and
``cluster_session_lifetime``, and a permanent one for ``PERMANENT_SESSION_LIFETIME`` since its last
use. No secret key is needed.
"""

from __future__ import annotations

import functools
from typing import Any

from gunicorn_cluster_ext.extras import missing

try:
    from flask import Flask, Request, Response
    from flask.sessions import SessionInterface, SessionMixin
except ImportError as error:
    raise missing("flask", error) from None

from gunicorn_cluster_ext.routing.responses import is_public
from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.session.middleware import UNAVAILABLE, UNAVAILABLE_HEADERS
from gunicorn_cluster_ext.session.session import Outcome, Session, SessionAway, SessionLifetime
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.handles import Stores

__all__ = ["ClusterSession"]


class FlaskSession(Session, SessionMixin):  # type: ignore[override]  # `new` is read-only
    """The object behind ``flask.session``."""

    def __init__(
        self, stores: Stores, lifetime: SessionLifetime, sid: str | None, app: Flask, https: bool
    ) -> None:
        super().__init__(stores, lifetime, sid)
        self.https = https
        self._app = app

    def lifetime(self) -> SessionLifetime:
        if self.permanent:
            return SessionLifetime(self._app.permanent_session_lifetime.total_seconds(), 0)
        return self._lifetime


class ClusterSession(SessionInterface):
    """Flask's session interface, over the store."""

    def __init__(self, app: Flask | None = None, *, stores: Stores = handles.default) -> None:
        self._stores = stores
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        app.session_interface = self
        app.register_error_handler(SessionAway, _unavailable)

    def open_session(self, app: Flask, request: Request) -> FlaskSession:
        header = request.environ.get("HTTP_COOKIE")
        sid = _cookie(self.get_cookie_name(app)).find(header) if header else None
        return FlaskSession(self._stores, self._lifetime, sid, app, request.is_secure)

    @functools.cached_property
    def _lifetime(self) -> SessionLifetime:
        """Computed late: a preloaded application is created before there is a worker."""
        return SessionLifetime.of(context.settings())

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Save the session. When the store is away, a response below 500 is sent unchanged."""
        assert isinstance(session, FlaskSession)
        try:
            outcome, sid = session.save()
        except SessionAway:
            _refuse(response)
            return
        if session.failed and response.status_code >= 500:
            _refuse(response)
            return
        if session.accessed:
            _vary(response)
        if outcome is Outcome.REMOVE:
            response.delete_cookie(self.get_cookie_name(app), **self._attributes(app, session))
        elif outcome is Outcome.PUT or (session.written and session.permanent):
            self._put_cookie(app, session, response, sid)

    def _put_cookie(self, app: Flask, session: FlaskSession, response: Response, sid: str) -> None:
        expires = self.get_expiration_time(app, session)
        attributes = self._attributes(app, session)
        response.set_cookie(self.get_cookie_name(app), sid, expires=expires, **attributes)
        if is_public(list(response.headers)):
            response.cache_control.private = True

    def _attributes(self, app: Flask, session: FlaskSession) -> dict[str, Any]:
        return {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app) or session.https,
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app) or "Lax",
        }


@functools.lru_cache(maxsize=16)
def _cookie(name: str) -> SessionCookie:
    return SessionCookie(name, None)


def _vary(response: Response) -> None:
    """Add ``Vary: Cookie``. ``response.vary`` takes 9 us, as much as everything else that a session
    costs which is only read."""
    if "Vary" in response.headers:
        response.vary.add("Cookie")
    else:
        response.headers.add("Vary", "Cookie")


def _unavailable(_: Exception) -> Response:
    return Response(UNAVAILABLE, 503, UNAVAILABLE_HEADERS)


def _refuse(response: Response) -> None:
    response.status_code = 503
    response.headers.clear()
    response.set_data(UNAVAILABLE)
    response.headers.extend(UNAVAILABLE_HEADERS)
