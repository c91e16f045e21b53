"""What a forked child must not share with its parent: locks, connections and counts."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Protocol
from weakref import ref


class Forgetful(Protocol):
    """An object that holds something which must not cross a fork."""

    def forget(self) -> None:
        """Start again with nothing, in a forked child, before any other code runs.

        Locks are replaced: a thread that does not exist in the child may hold them.
        """


_registered: list[ref[Forgetful]] = []


def register(holder: Forgetful) -> None:
    """Call ``holder.forget()`` in each child that is forked from now on.

    Holders are called in the order in which they were registered, and are not kept alive.
    """
    _registered[:] = [each for each in _registered if each() is not None]
    _registered.append(ref(holder))


def _after_fork() -> None:
    # An ExitStack calls all of them, the last one pushed first, also when one raises. Python
    # then reports the error, as it does for each hook of a fork.
    with ExitStack() as stack:
        for each in reversed(_registered):
            holder = each()
            if holder is not None:
                stack.callback(holder.forget)


os.register_at_fork(after_in_child=_after_fork)
