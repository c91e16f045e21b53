"""How responses bind clients to a worker: by our cookie, and by what the learn rules remember.

The middlewares in ``wsgi`` and ``asgi`` share this. The cookie is set only where it is needed:
when the request had none, or one of a slot in which no process is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from gunicorn_cluster_ext.routing.head import find_cookie
from gunicorn_cluster_ext.routing.rules import normalize_value
from gunicorn_cluster_ext.routing.tags import parse_slot_tag, slot_tag

#: The key under which an application finds its worker's id: in the ``environ`` (WSGI) or the
#: ``scope`` (ASGI).
WORKER_ID = "gunicorn_cluster.worker_id"

Headers = Iterable[tuple[str, str]]


class Affinity:
    """What the responses of the worker in ``slot`` do to bring a client back to it.

    ``cookie`` is the name of the cookie to set, or None to set none. ``seat_of_slot`` finds out
    whether a slot has a process (``Board.seat_of_slot``). ``learner`` reads every response, unless
    it is None.
    """

    def __init__(
        self,
        slot: int,
        cookie: str | None,
        seat_of_slot: Callable[[int], int | None],
        learner: Learner | None = None,
    ) -> None:
        self.slot = slot
        self.learner = learner
        self.sets_cookie = cookie is not None
        self._seat_of_slot = seat_of_slot
        self._name = (cookie or "").encode()
        self._pair = f"{cookie}={slot_tag(slot)}"

    def is_settled(self, cookies: str) -> bool:
        """Return whether a request with this ``Cookie`` header needs no new cookie.

        That is so if it names a slot with a ready process: this one, or another whose request came
        here by the decision of another rule.
        """
        if cookies == self._pair:  # true of most requests, and a single comparison
            return True
        value = find_cookie(cookies.encode("latin-1"), self._name)
        slot = parse_slot_tag(value) if value is not None else None
        return slot is not None and self._seat_of_slot(slot) is not None

    def set_cookie(self, *, secure: bool) -> str:
        """Return the value of ``Set-Cookie``; ``secure`` is for https."""
        return f"{self._pair}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"


class Learner:
    """Reads the values of the learn rules ``rules`` from this process's responses.

    ``learn`` is called with the rule and the value (``LearnedSessions.learn``) and returns whether
    the value is new. If it is, ``session_started`` is called.
    """

    def __init__(
        self,
        rules: Sequence[str],
        learn: Callable[[str, bytes], bool],
        session_started: Callable[[], None],
    ) -> None:
        self._learn = learn
        self._session_started = session_started
        named = [(rule, *rule.split(":", 2)[1:]) for rule in rules]
        self._headers = {name.lower(): rule for rule, kind, name in named if kind == "header"}
        self._cookies = {name: rule for rule, kind, name in named if kind == "cookie"}

    def read(self, headers: Headers) -> None:
        """Learn the values in the headers of a response.

        Called in any thread, and before the response is sent, because the client's next request
        may follow at once.
        """
        for name, value in headers:
            name = name.lower()
            rule = self._headers.get(name)
            if rule is None and name == "set-cookie" and self._cookies:
                name, _, value = value.partition(";")[0].partition("=")
                rule = self._cookies.get(name.strip())
            if rule is None:
                continue
            learned = normalize_value(value.encode("latin-1", "replace"))
            # An application deletes a cookie by setting it to nothing.
            if learned and self._learn(rule, learned):
                self._session_started()


def is_public(headers: Headers) -> bool:
    """Return whether a shared cache may store the response, and so give its cookie to others.

    It may when ``Cache-Control`` gives the response a lifetime and does not forbid storing it (RFC
    9111 section 3) or, without ``Cache-Control``, when ``Expires`` gives it one.
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
    """Return whether the date is in the future. ``Expires: 0`` and other invalid dates mean that
    the response is stale already."""
    try:
        return parsedate_to_datetime(expires) > datetime.now(timezone.utc)
    except (TypeError, ValueError):
        return False
