"""Django's session middleware, which answers 503 when the store with the sessions is away."""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext.extras import missing

try:
    from django.contrib.sessions import middleware
    from django.http import HttpResponse
except ImportError as error:
    raise missing("django", error) from None

from gunicorn_cluster_ext.session.middleware import UNAVAILABLE, UNAVAILABLE_HEADERS
from gunicorn_cluster_ext.session.session import SessionAway

__all__ = ["SessionMiddleware"]


class SessionMiddleware(middleware.SessionMiddleware):
    """Replaces ``django.contrib.sessions.middleware.SessionMiddleware`` for the engine
    ``gunicorn_cluster_ext.django.sessions``."""

    def process_exception(self, request: Any, exception: Exception) -> HttpResponse | None:
        """Answer for a view that could not use its session."""
        return _unavailable() if isinstance(exception, SessionAway) else None

    def process_response(self, request: Any, response: HttpResponse) -> HttpResponse:
        """Save the session. Answer if that fails, or if another middleware could not use it."""
        if request.session.cluster_session.failed and response.status_code >= 500:
            return _unavailable()
        try:
            return super().process_response(request, response)
        except SessionAway:
            return _unavailable()


def _unavailable() -> HttpResponse:
    return HttpResponse(UNAVAILABLE, status=503, headers=dict(UNAVAILABLE_HEADERS))
