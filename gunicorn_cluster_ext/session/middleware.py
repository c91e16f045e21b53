"""TODO session.middleware."""

from __future__ import annotations

import functools
from typing import Any

from gunicorn_cluster_ext.routing.responses import is_public
from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.session.session import Limits, Outcome, Session
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.handles import Stores

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
        settings = context.with_settings(self._overrides)
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
