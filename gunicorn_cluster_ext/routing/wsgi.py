"""What the pack adds to each request and response of a WSGI application.

``environ["gunicorn_cluster.worker_id"]`` is set for the application and for access logs
(``%({gunicorn_cluster.worker_id}e)s``), and our cookie in responses that need it. The learn rules
hear each response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.routing.responses import WORKER_ID, Learner, Tagging, is_public


class Tagged:
    """A WSGI application whose requests and responses know their worker.

    ``count`` is told of each WebSocket: 1 when it begins, -1 when it ends.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        tagging: Tagging,
        count: Callable[[int], None] | None = None,
    ) -> None:
        self.app = app
        self._tagging = tagging
        self._count = count

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        tagging = self._tagging
        environ[WORKER_ID] = tagging.slot
        if tagging.learner is not None:
            start_response = _heard(tagging.learner, start_response)
        if tagging.sets_cookie and not tagging.is_settled(environ.get("HTTP_COOKIE", "")):
            cookie = tagging.cookie(secure=environ["wsgi.url_scheme"] == "https")
            start_response = _setting(cookie, start_response)
        if "HTTP_UPGRADE" in environ:
            return self._upgraded(environ, start_response)
        return self.app(environ, start_response)

    def _upgraded(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """While the application is called it speaks to a WebSocket; it has no other way."""
        if self._count is None or environ["HTTP_UPGRADE"].lower() != "websocket":
            return self.app(environ, start_response)
        self._count(1)
        try:
            return self.app(environ, start_response)
        finally:
            self._count(-1)


def _setting(cookie: str, start_response: Any) -> Any:
    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        if not is_public(headers):
            headers = [*headers, ("Set-Cookie", cookie)]
        return start_response(status, headers, *exc_info)

    return start


def _heard(learner: Learner, start_response: Any) -> Any:
    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        learner.hear(headers)
        return start_response(status, headers, *exc_info)

    return start
