"""The innermost middleware around a WSGI application: the worker's id, cookie and learn rules.

It sets ``environ["gunicorn_cluster.worker_id"]`` for the application and for access logs
(``%({gunicorn_cluster.worker_id}e)s``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.routing.responses import WORKER_ID, Affinity, Learner, is_public


class AffinityMiddleware:
    """Binds the clients of ``app`` to this worker.

    ``count`` is called for each WebSocket: with 1 when it starts and -1 when it ends.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        affinity: Affinity,
        count: Callable[[int], None] | None = None,
    ) -> None:
        self.app = app
        self._affinity = affinity
        self._count = count

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        affinity = self._affinity
        environ[WORKER_ID] = affinity.slot
        if affinity.learner is not None:
            start_response = _learning(affinity.learner, start_response)
        if affinity.sets_cookie and not affinity.is_settled(environ.get("HTTP_COOKIE", "")):
            cookie = affinity.set_cookie(secure=environ["wsgi.url_scheme"] == "https")
            start_response = _setting_cookie(cookie, start_response)
        is_websocket = "HTTP_UPGRADE" in environ and environ["HTTP_UPGRADE"].lower() == "websocket"
        if not is_websocket or self._count is None:
            return self.app(environ, start_response)
        # In WSGI, a WebSocket lasts as long as the call of the application.
        self._count(1)
        try:
            return self.app(environ, start_response)
        finally:
            self._count(-1)


def _setting_cookie(cookie: str, start_response: Any) -> Any:
    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        if not is_public(headers):
            headers = [*headers, ("Set-Cookie", cookie)]
        return start_response(status, headers, *exc_info)

    return start


def _learning(learner: Learner, start_response: Any) -> Any:
    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        learner.read(headers)
        return start_response(status, headers, *exc_info)

    return start
