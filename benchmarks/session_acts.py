"""A session's contents, and what a request does with them; the same in every framework."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from itertools import count
from typing import Any

Session = MutableMapping[str, Any]

#: What an ordinary application keeps in a session.
CONTENTS: dict[str, Any] = {
    "user": 4711,
    "name": "Ada Lovelace",
    "csrf": "5tq8RkqkbGZ0pWm3sXv1cYhJnLdEaUoI5tq8RkqkbGZ",
    "locale": "en_GB",
    "cart": {"items": [{"article": 17, "pieces": 2}, {"article": 4, "pieces": 1}], "coupon": None},
    "seen": [17, 4, 99, 1024, 5],
    "visits": 0,
}

_numbers = count(1)


def begin(session: Session) -> None:
    session.update(CONTENTS)


def leave_alone(_: Session) -> None:
    pass


def read(session: Session) -> None:
    if session["user"] != CONTENTS["user"] or session["cart"]["coupon"] is not None:
        raise ValueError("the session is not what was stored")


def write(session: Session) -> None:
    """Store a different value each time: an equal one need not be written."""
    session["visits"] = next(_numbers)


#: The action of each path.
ACTS: dict[str, Callable[[Session], None]] = {
    "/begin": begin,
    "/untouched": leave_alone,
    "/read": read,
    "/written": write,
}
