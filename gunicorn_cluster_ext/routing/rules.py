"""Sticky rules: Head -> Owner | None. No I/O.

A rule finds the worker that owns a request; the first rule that finds one wins. Three
kinds, as HAProxy has them: a *tag* that the request carries (``engineio``, ``cookie``), a
value that was *learned* from a response (``learn:...``), and a *hash* of something in the
request (``hash:...``, ``module:function``).

*Soft* affinity follows the slot, *hard* affinity the process: see ``Owner``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import NamedTuple, Protocol

from gunicorn_cluster_ext.routing.head import Head, decode
from gunicorn_cluster_ext.routing.tags import ProcessTag, parse_sid, parse_slot_tag

#: Finds what a hash rule hashes, or a value that was learned, in a head.
Key = Callable[[Head], "bytes | None"]
#: Which process knows a value, by the rule that learned it.
Recall = Callable[[str, bytes], "ProcessTag | None"]


class Owner(NamedTuple):
    """The process that should serve a request.

    ``seat`` is where it is reached. Nothing but the process will do when ``hard``: its
    memory holds the session. Otherwise any worker can serve rather than let the client wait.
    """

    seat: int
    hard: bool


class Serving(Protocol):
    """Who is there, as far as a rule needs to know. The board is one."""

    def slots(self) -> Sequence[int]:
        """The slots that serve now, in ascending order."""

    def serving(self, slot: int) -> int | None:
        """The seat of the process that serves as ``slot`` now."""

    def process(self, slot: int, generation: int) -> int | None:
        """The seat of that very process, serving or draining."""


class Rule(Protocol):
    """One way to find the owner of a request."""

    def owner(self, head: Head, roster: Serving) -> Owner | None: ...


@dataclass(frozen=True)
class EngineIO:
    """The process that made the Engine.IO ``sid`` in the query; when it is gone, its slot.

    The slot's present process does not know the sid and says so as the protocol wants
    (400), upon which the client connects anew.
    """

    def owner(self, head: Head, roster: Serving) -> Owner | None:
        sid = head.query(b"sid")
        tag = parse_sid(sid) if sid is not None else None
        return None if tag is None else _knowing(tag, roster)


@dataclass(frozen=True)
class Learned:
    """The process from which the client has the value that it sends; when it is gone, its slot.

    ``key`` finds the value in a head.
    """

    words: str
    key: Key
    recall: Recall

    def may_begin(self, head: Head) -> bool:
        """Whether the client has no value yet, and may get one."""
        return self.key(head) is None

    def owner(self, head: Head, roster: Serving) -> Owner | None:
        value = self.key(head)
        tag = self.recall(self.words, bare(value)) if value else None
        return None if tag is None else _knowing(tag, roster)


def bare(value: bytes) -> bytes:
    """``value`` as both sides spell it: clients add, or take away, quotes around a cookie's."""
    return value.strip(b' \t"')


def _knowing(tag: ProcessTag, roster: Serving) -> Owner | None:
    """Who owns a request that only the process ``tag`` knows how to answer."""
    seat = roster.process(*tag)
    if seat is not None:
        return Owner(seat, True)
    seat = roster.serving(tag.slot)
    return None if seat is None else Owner(seat, False)


@dataclass(frozen=True)
class Cookie:
    """The slot that our cookie names."""

    name: bytes

    def owner(self, head: Head, roster: Serving) -> Owner | None:
        value = head.cookie(self.name)
        slot = parse_slot_tag(value) if value is not None else None
        seat = roster.serving(slot) if slot is not None else None
        return None if seat is None else Owner(seat, False)


@dataclass(frozen=True)
class Hash:
    """The slot that a key falls to, evenly, and moving as few keys as can be when slots change.

    ``key`` finds the key in a head, or None. Its result alone decides, on every worker alike.
    """

    key: Key

    def owner(self, head: Head, roster: Serving) -> Owner | None:
        key = self.key(head)
        slots = roster.slots()
        if key is None or not slots:
            return None
        seat = roster.serving(rendezvous(key, slots))
        return None if seat is None else Owner(seat, False)


def find_owner(rules: Sequence[Rule], head: Head, roster: Serving) -> tuple[Owner | None, int]:
    """The owner that the first rule finds, and which rule that is; None and -1 when the request is
    anybody's."""
    for number, rule in enumerate(rules):
        owner = rule.owner(head, roster)
        if owner is not None:
            return owner, number
    return None, -1


def begins_session(head: Head) -> bool:
    """Whether the request opens an Engine.IO session, whose worker is chosen for its whole life.

    Such a request is worth a hand-off to the emptiest worker; any other is served where it
    arrived unless all threads there are busy.
    """
    return head.query(b"EIO") is not None and head.query(b"sid") is None


def asks_for_websocket(head: Head) -> bool:
    """Whether the request wants to become a WebSocket, whose worker is chosen for long as well."""
    return (head.header(b"upgrade") or b"").lower() == b"websocket"


_MASK = (1 << 64) - 1


def rendezvous(key: bytes, slots: Sequence[int]) -> int:
    """The slot among ``slots`` with the highest weight for ``key`` (highest random weight hashing).

    When a slot goes, only its keys move; when it returns, they return.
    """
    base = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
    return max(slots, key=lambda slot: _mix(base + slot * 0x9E3779B97F4A7C15))


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


# --- from the words of the setting to rules ---------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
ALLOWED = (
    "engineio, cookie, learn:header:NAME, learn:cookie:NAME, hash:ip, hash:header:NAME, "
    "hash:query:NAME, hash:cookie:NAME, hash:path:REGEX or module:function"
)


def check_rule(words: str) -> None:
    """Raise ValueError unless ``words`` is a rule. Imports nothing of the user's."""
    if words in ("engineio", "cookie", "hash:ip") or _is_function(words):
        return
    way, _, rest = words.partition(":")
    kind, _, name = rest.partition(":")
    if kind not in _KINDS.get(way, ()):
        raise ValueError(f"{words!r} is not a rule")
    if kind == "path":
        try:
            re.compile(name.encode("latin-1"))
        except (re.error, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(f"{words!r}: {name!r} is not a regular expression: {error}") from None
    if not name or (kind != "path" and not _TOKEN.fullmatch(name)):
        raise ValueError(f"{words!r} names no {kind}")


def learn_rules(rules: Iterable[str]) -> list[str]:
    """Those of ``rules`` that learn."""
    return [words for words in rules if words.startswith("learn:")]


def _is_function(words: str) -> bool:
    return _FUNCTION.fullmatch(words) is not None and words.split(":")[0] not in (
        "hash",
        "cookie",
        "engineio",
        "learn",
    )


class RuleContext(NamedTuple):
    """What rules need of the worker that they are built for.

    ``cookie`` is the name of ours; ``failed`` hears what a user's function raises.
    """

    cookie: str
    client_ip: Key
    recall: Recall
    failed: Callable[[str, Exception], None]


def build_rule(words: str, context: RuleContext) -> Rule:
    """The rule that ``words`` (checked by ``check_rule``) asks for.

    Called in the worker, after the application is loaded: a user's function is imported here
    (ImportError or AttributeError when it is not there).
    """
    if words == "engineio":
        return EngineIO()
    if words == "cookie":
        return Cookie(context.cookie.encode())
    if words == "hash:ip":
        return Hash(context.client_ip)
    if _is_function(words):
        return Hash(_users_key(words, context.failed))
    way, kind, name = words.split(":", 2)
    key = _KEYS[kind](name)
    return Learned(words, key, context.recall) if way == "learn" else Hash(key)


def _users_key(words: str, failed: Callable[[str, Exception], None]) -> Key:
    module, _, name = words.partition(":")
    function = getattr(import_module(module), name)

    def key(head: Head) -> bytes | None:
        try:
            result = function(head)
            if result is not None and not isinstance(result, bytes):
                raise TypeError(f"a rule answers bytes or None, not {type(result).__name__}")
            return result
        except Exception as error:
            failed(words, error)
            return None

    return key


def _header_key(name: str) -> Key:
    field = name.lower().encode()
    return lambda head: head.header(field)


def _query_key(name: str) -> Key:
    field = name.encode()

    def key(head: Head) -> bytes | None:
        value = head.query(field)
        return None if value is None else decode(value)

    return key


def _cookie_key(name: str) -> Key:
    field = name.encode()
    return lambda head: head.cookie(field)


def _path_key(expression: str) -> Key:
    pattern = re.compile(expression.encode("latin-1"))

    def key(head: Head) -> bytes | None:
        match = pattern.search(head.path)
        return None if match is None else match[1 if pattern.groups else 0]

    return key


_KEYS: dict[str, Callable[[str], Key]] = {
    "header": _header_key,
    "query": _query_key,
    "cookie": _cookie_key,
    "path": _path_key,
}
_KINDS = {"hash": tuple(_KEYS), "learn": ("header", "cookie")}
