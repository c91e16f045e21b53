"""What the pack adds to each request and response of a WSGI application.

``environ["gunicorn_cluster.worker_id"]`` is set for the application and for access logs
(``%({gunicorn_cluster.worker_id}e)s``), and our cookie in responses that need it. The learn rules
hear each response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gunicorn_cluster_ext.learner import Learner
from gunicorn_cluster_ext.tagging import WORKER_ID, Tagging, is_public


class Tagged:
    """A WSGI application whose requests and responses know their worker."""

    def __init__(self, app: Callable[..., Iterable[bytes]], tagging: Tagging) -> None:
        self.app = app
        self._tagging = tagging

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        tagging = self._tagging
        environ[WORKER_ID] = tagging.slot
        if tagging.learner is not None:
            start_response = _heard(tagging.learner, start_response)
        if tagging.sets_cookie and not tagging.is_settled(environ.get("HTTP_COOKIE", "")):
            cookie = tagging.cookie(secure=environ["wsgi.url_scheme"] == "https")
            start_response = _setting(cookie, start_response)
        return self.app(environ, start_response)


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
