"""What the arbiter is to do, as values; the policy of a roll, and its progress. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.slots import Process


@dataclass(frozen=True)
class RollPolicy:
    """How workers are replaced. ``target`` workers are wanted; times are in seconds.

    ``full``: a roll that fails is undone completely. ``startup`` 0: a worker may boot for any
    time. ``probing``: a new worker takes over only when it has passed a health check.
    """

    target: int
    surge: int
    unavailable: int
    full: bool
    observe: float
    startup: float
    drain: float
    probing: bool

    @classmethod
    def of(cls, settings: Settings, cfg: Any, target: int, *, probing: bool) -> RollPolicy:
        """Return the policy of ``settings`` and gunicorn's ``cfg``."""
        surge = _workers(settings.roll_surge, target, ceil)
        unavailable = _workers(settings.roll_unavailable, target, floor)
        return cls(
            target=target,
            surge=surge,
            # As in Kubernetes: percentages that round to nothing must not stop every roll.
            unavailable=unavailable if surge else max(unavailable, 1),
            full=settings.roll_rollback == "full",
            observe=settings.roll_observe,
            startup=settings.startup_timeout,
            drain=settings.drain(cfg),
            probing=probing,
        )


def _workers(share: int | str, target: int, rounded: Callable[[float], int]) -> int:
    """Return ``share``, a number of workers or a percentage of ``target`` such as "25%"."""
    if isinstance(share, int):
        return share
    return rounded(int(share.removesuffix("%")) * target / 100)


@dataclass
class RollProgress:
    """One roll. The processes that it starts have its ``version``.

    ``begun`` and ``observed_until`` are monotonic, in seconds; ``before`` workers were wanted
    before the reload.
    """

    version: int
    begun: float
    total: int
    before: int
    state: RollState = RollState.ROLLING
    replaced: int = 0
    observed_until: float = 0.0
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in (RollState.ROLLING, RollState.OBSERVING)


class Spawn(NamedTuple):
    """Fork a process for ``slot``."""

    slot: int


class Retire(NamedTuple):
    """Ask ``process`` to finish."""

    process: Process


class Park(NamedTuple):
    """Take ``process`` out of service without ending it."""

    process: Process


class Resume(NamedTuple):
    """Put a parked ``process`` into service again."""

    process: Process


class Abort(NamedTuple):
    """End ``process`` by SIGABRT, so that it can still log where it hangs."""

    process: Process
    reason: str


class Kill(NamedTuple):
    """End ``process`` by SIGKILL."""

    process: Process
    reason: str


class RollEnded(NamedTuple):
    """Report the end of ``roll``. ``undone``: every slot has the process that it had before."""

    roll: RollProgress
    undone: bool


Action = Spawn | Retire | Park | Resume | Abort | Kill | RollEnded
