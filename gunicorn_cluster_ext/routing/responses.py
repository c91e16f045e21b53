"""What the wrappers around WSGI and ASGI applications have in common.

The cookie is set only where it is needed: when the request brought none, or one of a slot that
serves no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from gunicorn_cluster_ext.routing.head import find_cookie
from gunicorn_cluster_ext.routing.rules import bare
from gunicorn_cluster_ext.routing.tags import parse_slot_tag, slot_tag

#: Where an application finds its worker's id: in the ``environ`` (WSGI) or ``scope`` (ASGI).
WORKER_ID = "gunicorn_cluster.worker_id"

Headers = Iterable[tuple[str, str]]


class Tagging:
    """How the responses of the worker ``slot`` say whose they are.

    ``cookie`` is the name of the cookie to set, or None for none; ``serving`` tells whether a
    slot serves (``Board.serving``); ``learner`` hears every response, if there is one.
    """

    def __init__(
        self,
        slot: int,
        cookie: str | None,
        serving: Callable[[int], int | None],
        learner: Learner | None = None,
    ) -> None:
        self.slot = slot
        self.learner = learner
        self.sets_cookie = cookie is not None
        self._serving = serving
        self._name = (cookie or "").encode()
        self._ours = f"{cookie}={slot_tag(slot)}"

    def is_settled(self, header: str) -> bool:
        """Whether a request with the header ``Cookie`` needs no cookie: it names a slot that
        serves, this one or (by another rule's decision) a sibling."""
        if header == self._ours:  # most requests: one comparison settles those
            return True
        value = find_cookie(header.encode("latin-1"), self._name)
        slot = parse_slot_tag(value) if value is not None else None
        return slot is not None and self._serving(slot) is not None

    def cookie(self, *, secure: bool) -> str:
        """The value of ``Set-Cookie``; ``secure`` for https."""
        return f"{self._ours}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"


def is_public(headers: Headers) -> bool:
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


class Learner:
    """Hears the headers of this process's responses, for the learn rules ``rules``.

    ``learn`` is called with the rule and the value when there is one (``LearnedSessions.learn``)
    and returns whether the value is new; if so, ``begun`` is called.
    """

    def __init__(
        self,
        rules: Sequence[str],
        learn: Callable[[str, bytes], bool],
        begun: Callable[[], None],
    ) -> None:
        self._learn = learn
        self._begun = begun
        named = [(rule, *rule.split(":", 2)[1:]) for rule in rules]
        self._headers = {name.lower(): rule for rule, kind, name in named if kind == "header"}
        self._cookies = {name: rule for rule, kind, name in named if kind == "cookie"}

    def hear(self, headers: Iterable[tuple[str, str]]) -> None:
        """Called in any thread, before the response is sent: the client may ask again at once."""
        for rule, text in self._found(headers):
            value = bare(text.encode("latin-1", "replace"))
            # A cookie is deleted by setting it to nothing.
            if value and self._learn(rule, value):
                self._begun()

    def _found(self, headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Each rule that finds a value, with the value."""
        for name, value in headers:
            field = name.lower()
            if field in self._headers:
                yield self._headers[field], value
            elif field == "set-cookie" and self._cookies:
                name, _, value = value.partition(";")[0].partition("=")
                if name.strip() in self._cookies:
                    yield self._cookies[name.strip()], value
