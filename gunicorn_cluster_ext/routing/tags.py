"""What a client carries so that its requests find their worker again.

Two tags, because there are two kinds of affinity:

* the **slot tag** (our cookie) is the slot, in decimal: ``2``. It follows the slot,
  whichever process holds it.
* the **process tag** (the end of an Engine.IO sid) is slot and generation:
  ``lv_VI97HAXpY6yYWAAAC.2.5``. It follows that very process.

A tag chooses a worker and grants nothing, so it is not signed; it is parsed strictly,
and anything else in its place is no tag.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Decimal without leading zeros: one spelling a tag, so none can be padded to absurdity.
_NUMBER = rb"(0|[1-9][0-9]{0,%d})"
_SLOT = re.compile(_NUMBER % 3)
# Engine.IO sids are base64url (engineio.base_server.BaseServer.generate_id): no dot.
# Python-socketio makes its own sids with the same function, and clients send both back
# unescaped, because "." is an unreserved character (RFC 3986 section 2.3).
_PROCESS = re.compile(rb"[A-Za-z0-9_-]{1,64}\." + _NUMBER % 3 + rb"\." + _NUMBER % 9)


class ProcessTag(NamedTuple):
    """The process that made a sid."""

    slot: int
    generation: int


def slot_tag(slot: int) -> str:
    """The cookie's value for ``slot``."""
    return str(slot)


def parse_slot_tag(value: bytes) -> int | None:
    """The slot that ``value`` names, or None when it is no slot tag."""
    return int(value) if _SLOT.fullmatch(value) else None


def tag_sid(sid: str, slot: int, generation: int) -> str:
    """``sid`` with its process tag."""
    return f"{sid}.{slot}.{generation}"


def parse_sid(value: bytes) -> ProcessTag | None:
    """The process that made the sid ``value``, or None when it carries no process tag."""
    match = _PROCESS.fullmatch(value)
    return ProcessTag(int(match[1]), int(match[2])) if match else None
