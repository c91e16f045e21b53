"""What the pack adds to each request and response, around the application.

``environ["gunicorn_cluster.worker_id"]`` is set for the application and for access logs
(``%({gunicorn_cluster.worker_id}e)s``). The cookie is set only where it is needed: when the
request brought none, or one of a slot that serves no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from gunicorn_cluster_ext.head import find_cookie
from gunicorn_cluster_ext.tags import parse_slot_tag, slot_tag

WORKER_ID = "gunicorn_cluster.worker_id"

Headers = list[tuple[str, str]]


class Tagged:
    """A WSGI application whose requests and responses know their worker.

    ``cookie`` is the name of the cookie to set, or None for none; ``serving`` tells whether a
    slot serves (``Board.serving``).
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        slot: int,
        cookie: str | None,
        serving: Callable[[int], int | None],
    ) -> None:
        self.app = app
        self._slot = slot
        self._cookie = cookie
        self._serving = serving
        self._name = (cookie or "").encode()
        self._ours = f"{cookie}={slot_tag(slot)}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[WORKER_ID] = self._slot
        cookie = self._cookie
        # Most requests carry our cookie: one search settles those.
        if cookie is not None and not self._is_settled(environ.get("HTTP_COOKIE", "")):
            start_response = self._setting(environ["wsgi.url_scheme"], start_response)
        return self.app(environ, start_response)

    def _is_settled(self, header: str) -> bool:
        """Whether the request names a slot that serves, this one or (by another rule's
        decision) a sibling."""
        if header == self._ours:
            return True
        value = find_cookie(header.encode("latin-1"), self._name)
        slot = parse_slot_tag(value) if value is not None else None
        return slot is not None and self._serving(slot) is not None

    def _setting(self, scheme: str, start_response: Any) -> Any:
        secure = "; Secure" if scheme == "https" else ""
        value = f"{self._ours}; Path=/; HttpOnly; SameSite=Lax{secure}"

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            if not is_public(headers):
                headers = [*headers, ("Set-Cookie", value)]
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        return start


def is_public(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a shared cache may keep the response, and hand one client's cookie to all.

    That is so when ``Cache-Control`` gives it a lifetime and does not forbid it (RFC 9111
    section 3), or, without ``Cache-Control``, ``Expires`` does.
    """
    fields = [(name.lower(), value.lower()) for name, value in headers]
    directives = [value for name, value in fields if name == "cache-control"]
    if not directives:
        return any(name == "expires" and _is_ahead(value) for name, value in fields)
    words = {word.strip().partition("=")[0] for value in directives for word in value.split(",")}
    if words & {"private", "no-store"}:
        return False
    return bool(words & {"public", "s-maxage"}) or ("max-age" in words and "no-cache" not in words)


def _is_ahead(expires: str) -> bool:
    """Whether the date lies ahead. What is no date, as in ``Expires: 0``, means "already stale"."""
    try:
        return parsedate_to_datetime(expires) > datetime.now(timezone.utc)
    except (TypeError, ValueError):
        return False
