"""What must be made anew in a forked child: locks, connections and counts of the parent."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import ref


class Forgetful(Protocol):
    """An object that holds something which must not cross a fork."""

    def forget(self) -> None:
        """Start again with nothing. Runs in a new child, before anything else does."""


_registered: list[ref[Forgetful]] = []


def register(holder: Forgetful) -> None:
    """Call ``holder.forget()`` in each child that is forked from now on.

    Holders are called in the order in which they were registered, and are not kept alive.
    """
    _registered[:] = [each for each in _registered if each() is not None]
    _registered.append(ref(holder))


def _after_fork() -> None:
    for each in _registered:
        holder = each()
        if holder is not None:
            holder.forget()


os.register_at_fork(after_in_child=_after_fork)
