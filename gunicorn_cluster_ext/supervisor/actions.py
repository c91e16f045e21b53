"""TODO supervisor.actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.supervisor.slots import Process


class Spawn(NamedTuple):
    """Fork a process for ``slot``."""

    slot: int


class Tell(NamedTuple):
    """Tell ``process`` to finish."""

    process: Process


class Park(NamedTuple):
    process: Process


class Resume(NamedTuple):
    process: Process


class Abort(NamedTuple):
    """End ``process`` by SIGABRT, upon which it may still say where it hangs."""

    process: Process
    why: str


class Kill(NamedTuple):
    """End ``process`` by SIGKILL."""

    process: Process
    why: str


class Ended(NamedTuple):
    """The roll is over. ``undone``: nothing of it is left."""

    roll: RollProgress
    undone: bool


Action = Spawn | Tell | Park | Resume | Abort | Kill | Ended


@dataclass(frozen=True)
class RollPolicy:
    """Times in seconds; ``startup`` 0: any time. ``probing``: new processes are to be healthy."""

    target: int
    surge: int
    unavailable: int
    full: bool
    observe: float
    startup: float
    drain: float
    probing: bool


@dataclass
class RollProgress:
    """One roll. Processes forked for it have its ``version``; ``before`` slots were wanted."""

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
