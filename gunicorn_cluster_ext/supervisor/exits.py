"""Why a process ended, in words, and whether that was to be expected. No I/O."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import State

if TYPE_CHECKING:
    from gunicorn_cluster_ext.supervisor.slots import Process
from gunicorn_cluster_ext.runtime.board.layout import Cause

#: What gunicorn's workers exit with when they cannot boot, and when the application cannot load.
BOOT_ERROR = 3
LOAD_ERROR = 4

#: Why processes are told to finish. Any other reason is one to recycle it.
ROLL = "the reload replaced it"
ANOTHER_ROLL = "another roll began"
ROLL_FAILED = "the roll failed"
ASKED = "somebody asked it to"
REPLACED = "it was replaced"
RESTART = "gunicorn-cluster restart"
FEWER = "fewer workers are wanted"
SERVER_ENDS = "the server ends"


_CAUSES = {
    ROLL: Cause.ROLL,
    ANOTHER_ROLL: Cause.ROLL,
    ROLL_FAILED: Cause.ROLL,
    REPLACED: Cause.ROLL,
    ASKED: Cause.REQUEST,
    RESTART: Cause.REQUEST,
    FEWER: Cause.REQUEST,
    SERVER_ENDS: Cause.REQUEST,
}


class Exit(NamedTuple):
    """How a process ended: its exit code, or the number of the signal that ended it."""

    code: int | None
    signal: int | None

    @classmethod
    def of_code(cls, code: int) -> Exit:
        """From what ``os.waitstatus_to_exitcode`` made of a status: below 0 it is a signal."""
        return cls(None, -code) if code < 0 else cls(code, None)

    @property
    def signal_name(self) -> str:
        try:
            return signal.Signals(self.signal or 0).name
        except ValueError:
            return f"signal {self.signal}"

    @property
    def failed_to_boot(self) -> bool:
        return self.code in (BOOT_ERROR, LOAD_ERROR)

    def is_expected(self, process: Process) -> bool:
        """Whether somebody wanted it: the arbiter, or an operator who sent the worker a signal.

        A worker that was asked to finish says so on the board.
        """
        if process.blamed:
            return False
        asked = process.state in (State.DRAINING, State.GONE) and self.code == 0
        return process.told is not None or asked or self.signal == signal.SIGTERM

    def cause(self, process: Process) -> Cause:
        if process.blamed:
            return Cause.FORCE
        if not self.is_expected(process):
            return Cause.BOOT if process.ready is None else Cause.CRASH
        return _CAUSES.get(process.why or ASKED, Cause.RECYCLE)

    def words(self, process: Process, now: float) -> str:
        """Why it ended, and when, as one phrase."""
        return f"{self.reason(process)} {_when(process, now)}"

    def reason(self, process: Process) -> str:
        """Why it ended, as one phrase."""
        if process.blamed:
            return process.blamed
        if process.told is not None:
            return f"finished ({process.why})" if self.code == 0 else f"ended ({process.why})"
        if self.is_expected(process):
            return "was told from outside to finish"
        if self.signal is not None:
            return f"was ended by {self.signal_name}"
        if self.code == LOAD_ERROR or (self.code == BOOT_ERROR and process.ready is None):
            return f"could not load the application (exit code {self.code})"
        return f"exited by itself with code {self.code}"


def _when(process: Process, now: float) -> str:
    if process.ready is None:
        return f"before it was ready, {now - process.forked:.1f} s after its start"
    return f"after serving for {now - process.ready:.1f} s"
