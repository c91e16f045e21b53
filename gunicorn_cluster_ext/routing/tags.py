"""The two tags that a client carries so that its requests find their worker again.

* The **slot tag**, the value of our cookie, is a slot in decimal: ``2``. It names the slot,
  whichever process holds it.
* The **process tag**, the end of an Engine.IO sid, is slot and generation:
  ``lv_VI97HAXpY6yYWAAAC.2.5``. It names one process.

A tag only chooses a worker and grants nothing, so it is not signed. It is parsed strictly;
anything of another form is no tag.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Decimal without leading zeros: each tag has one spelling, of limited length.
_NUMBER = rb"(0|[1-9][0-9]{0,%d})"
_SLOT = re.compile(_NUMBER % 3)
# Engine.IO sids are base64url (engineio.base_server.BaseServer.generate_id) and have no dot.
# Python-socketio makes its own sids with the same function, and clients send both back
# unescaped, because "." is an unreserved character (RFC 3986 section 2.3).
_PROCESS = re.compile(rb"[A-Za-z0-9_-]{1,64}\." + _NUMBER % 3 + rb"\." + _NUMBER % 9)


class ProcessTag(NamedTuple):
    """One process: the ``generation``-th that has held ``slot``."""

    slot: int
    generation: int


def slot_tag(slot: int) -> str:
    """Return the cookie's value for ``slot``."""
    return str(slot)


def parse_slot_tag(value: bytes) -> int | None:
    """Return the slot that ``value`` names, or None if it is no slot tag."""
    return int(value) if _SLOT.fullmatch(value) else None


def tag_sid(sid: str, slot: int, generation: int) -> str:
    """Return ``sid`` with a process tag."""
    return f"{sid}.{slot}.{generation}"


def parse_sid(value: bytes) -> ProcessTag | None:
    """Return the process that made the sid ``value``, or None if it has no process tag."""
    match = _PROCESS.fullmatch(value)
    return ProcessTag(int(match[1]), int(match[2])) if match else None
