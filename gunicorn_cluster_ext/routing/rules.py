"""Sticky rules: Head -> Owner | None. No I/O.

A rule finds the process that owns a request; the first rule that finds one wins. There are three
kinds, as in HAProxy: a *tag* that the request carries (``EngineIO``, ``Cookie``), a value that was
*learned* from a response (``Learned``), and a *hash* of a part of the request (``Hash``).
``rule_syntax`` makes them from the setting ``cluster_sticky``.

*Soft* affinity follows the slot, *hard* affinity the process: see ``Owner``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from gunicorn_cluster_ext.routing.head import Head
from gunicorn_cluster_ext.routing.tags import ProcessTag, parse_sid, parse_slot_tag

#: Finds, in a head, the value that a hash rule hashes or a learn rule looks up.
Key = Callable[[Head], "bytes | None"]
#: Returns the process that knows a value, by the rule that learned it.
Recall = Callable[[str, bytes], "ProcessTag | None"]

#: 2**64 divided by the golden ratio, the increment of SplitMix64: it spreads consecutive slots
#: over all 64 bits.
_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


class Owner(NamedTuple):
    """The process that should serve a request; ``seat`` is where it is reached.

    With ``hard_affinity`` no other process can serve the request, because the session is in this
    one's memory. Otherwise any worker may serve it rather than let the client wait.
    """

    seat: int
    hard_affinity: bool


class SeatLookup(Protocol):
    """What rules need to know of the processes of this server. The board implements it."""

    def slots(self) -> Sequence[int]:
        """Return the slots in which a process is ready, in ascending order."""

    def seat_of_slot(self, slot: int) -> int | None:
        """Return the seat of the process that is ready in ``slot``, or None."""

    def seat_of_process(self, slot: int, generation: int) -> int | None:
        """Return the seat of one process, which may be draining, or None if it has ended."""


class Rule(Protocol):
    """One way to find the owner of a request."""

    def owner(self, head: Head, seats: SeatLookup) -> Owner | None: ...


@dataclass(frozen=True)
class EngineIO:
    """Finds the process that made the Engine.IO ``sid`` in the query, or its successor in the slot.

    The successor does not know the sid and says so as the protocol demands (400). The client then
    connects again.
    """

    def owner(self, head: Head, seats: SeatLookup) -> Owner | None:
        sid = head.query(b"sid")
        tag = parse_sid(sid) if sid is not None else None
        return None if tag is None else _owner_by_process(tag, seats)


@dataclass(frozen=True)
class Learned:
    """Finds the process that gave the client the value that it sends, or its successor.

    ``key`` finds the value in a head; ``recall`` finds the process for ``rule``, the text of this
    rule, and the value.
    """

    rule: str
    key: Key
    recall: Recall

    def may_start_session(self, head: Head) -> bool:
        """Return whether the client has no value yet, so that the response may give it one."""
        return self.key(head) is None

    def owner(self, head: Head, seats: SeatLookup) -> Owner | None:
        value = self.key(head)
        tag = self.recall(self.rule, normalize_value(value)) if value else None
        return None if tag is None else _owner_by_process(tag, seats)


def normalize_value(value: bytes) -> bytes:
    """Return ``value`` without whitespace and quotes around it.

    Clients add quotes to the value of a cookie, or remove them.
    """
    return value.strip(b' \t"')


def _owner_by_process(tag: ProcessTag, seats: SeatLookup) -> Owner | None:
    """Return the process ``tag`` with hard affinity; after its end, its successor in the slot."""
    seat = seats.seat_of_process(*tag)
    if seat is not None:
        return Owner(seat, True)
    seat = seats.seat_of_slot(tag.slot)
    return None if seat is None else Owner(seat, False)


@dataclass(frozen=True)
class Cookie:
    """Finds the slot that our cookie names; ``name`` is the cookie's."""

    name: bytes

    def owner(self, head: Head, seats: SeatLookup) -> Owner | None:
        value = head.cookie(self.name)
        slot = parse_slot_tag(value) if value is not None else None
        seat = seats.seat_of_slot(slot) if slot is not None else None
        return None if seat is None else Owner(seat, False)


@dataclass(frozen=True)
class Hash:
    """Finds the slot for the key in a head by rendezvous hashing.

    The key alone decides, on every worker alike. Keys spread evenly over the slots, and as few as
    possible move when slots change.
    """

    key: Key

    def owner(self, head: Head, seats: SeatLookup) -> Owner | None:
        key = self.key(head)
        slots = seats.slots()
        if key is None or not slots:
            return None
        seat = seats.seat_of_slot(rendezvous(key, slots))
        return None if seat is None else Owner(seat, False)


def find_owner(rules: Sequence[Rule], head: Head, seats: SeatLookup) -> tuple[Owner | None, int]:
    """Return the owner that the first matching rule finds, and the index of that rule.

    Return None and -1 if no rule finds an owner, so that any worker may serve the request.
    """
    for index, rule in enumerate(rules):
        owner = rule.owner(head, seats)
        if owner is not None:
            return owner, index
    return None, -1


def starts_engineio_session(head: Head) -> bool:
    """Return whether the request opens an Engine.IO session.

    It chooses the worker for the whole session, so it is worth a hand-off to the least loaded
    one. Any other request is served where it arrived unless all threads there are busy.
    """
    return head.query(b"EIO") is not None and head.query(b"sid") is None


def is_websocket_upgrade(head: Head) -> bool:
    """Return whether the request opens a WebSocket, which also chooses its worker for long."""
    return (head.header(b"upgrade") or b"").lower() == b"websocket"


def rendezvous(key: bytes, slots: Sequence[int]) -> int:
    """Return the slot with the highest weight for ``key`` (highest random weight hashing).

    When a slot disappears, only its keys move; when it returns, they move back.
    """
    base = int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
    return max(slots, key=lambda slot: _mix(base + slot * _GOLDEN_GAMMA))


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
