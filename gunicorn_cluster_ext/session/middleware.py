"""The part that the WSGI and the ASGI middleware share."""

from __future__ import annotations

import functools
from typing import Any

from gunicorn_cluster_ext.routing.responses import is_public
from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.session.session import Outcome, Session, SessionLifetime
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.handles import Stores

#: The key of the session in a WSGI environ.
ENVIRON_KEY = "gunicorn_cluster.session"

#: The body and the headers of the response 503.
UNAVAILABLE = b"The sessions cannot be reached at the moment. Please try again.\n"
UNAVAILABLE_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(UNAVAILABLE))),
    ("Retry-After", "2"),
    ("Cache-Control", "no-store"),
]

Headers = list[tuple[str, str]]


class Sessions:
    """Makes the session of a request, and the headers of its response.

    ``overrides`` are settings without their prefix ``session_``. Raises SettingError for a bad one.
    """

    def __init__(self, stores: Stores, overrides: dict[str, Any]) -> None:
        self.stores = stores
        self._overrides = {f"session_{name}": value for name, value in overrides.items()}
        # Not only in the first request.
        SessionCookie.of(Settings(**self._overrides))

    @functools.cached_property
    def _policy(self) -> tuple[SessionCookie, SessionLifetime]:
        """Computed late: a preloaded application is created before there is a worker."""
        settings = context.with_settings(self._overrides)
        return SessionCookie.of(settings), SessionLifetime.of(settings)

    def open(self, header: str) -> Session:
        """Return the session of a request with this ``Cookie`` header."""
        cookie, lifetime = self._policy
        return Session(self.stores, lifetime, cookie.find(header) if header else None)

    def headers(
        self, session: Session, saved: tuple[Outcome, str], scheme: str, given: Headers
    ) -> Headers:
        """Return what to add to a response that has the headers ``given``."""
        outcome, sid = saved
        headers = [("Vary", "Cookie")] if session.accessed else []
        if outcome is Outcome.PUT:
            headers.append(("Set-Cookie", self._policy[0].put(sid, scheme)))
        elif outcome is Outcome.REMOVE:
            headers.append(("Set-Cookie", self._policy[0].remove(scheme)))
        # Otherwise a shared cache would give one client's cookie to others.
        if outcome is not Outcome.KEEP and is_public(given):
            headers.append(("Cache-Control", "private"))
        return headers
