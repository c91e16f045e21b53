"""Why a process exited, in words, and whether that was expected. No I/O."""

from __future__ import annotations

import signal
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.layout import Cause, State
from gunicorn_cluster_ext.supervisor.slots import Process

#: The exit codes of gunicorn's workers that cannot boot, or cannot load the application.
BOOT_ERROR = 3
LOAD_ERROR = 4

#: The reasons for which processes are retired. Any other reason is one to recycle a process.
ROLL = "the reload replaced it"
ANOTHER_ROLL = "another roll began"
ROLL_FAILED = "the roll failed"
SIGNALLED = "it received a signal"
REPLACED = "it was replaced"
RESTART = "gunicorn-cluster restart"
FEWER = "fewer workers are wanted"
SERVER_STOPS = "the server is stopping"

_CAUSES = {
    ROLL: Cause.ROLL,
    ANOTHER_ROLL: Cause.ROLL,
    ROLL_FAILED: Cause.ROLL,
    REPLACED: Cause.ROLL,
    SIGNALLED: Cause.REQUEST,
    RESTART: Cause.REQUEST,
    FEWER: Cause.REQUEST,
    SERVER_STOPS: Cause.REQUEST,
}


class Exit(NamedTuple):
    """How a process ended: its exit code, or the number of the signal that ended it."""

    code: int | None
    signal: int | None

    @classmethod
    def of_code(cls, code: int) -> Exit:
        """Convert the result of ``os.waitstatus_to_exitcode``: below 0 it is a signal."""
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
        """Return whether the exit was asked for, by the arbiter or by an operator's signal.

        A worker that receives a signal to finish publishes DRAINING before it exits.
        """
        if process.kill_reason:
            return False
        drained = process.state in (State.DRAINING, State.GONE) and self.code == 0
        return process.retired_at is not None or drained or self.signal == signal.SIGTERM

    def cause(self, process: Process) -> Cause:
        """Return the kind of exit, as the board counts it."""
        if process.kill_reason:
            return Cause.FORCE
        if not self.is_expected(process):
            return Cause.BOOT if process.ready_at is None else Cause.CRASH
        return _CAUSES.get(process.retire_reason or SIGNALLED, Cause.RECYCLE)

    def words(self, process: Process, now: float) -> str:
        """Return why and when the process exited, as one phrase."""
        if process.ready_at is None:
            when = f"before it was ready, {now - process.forked_at:.1f} s after its start"
        else:
            when = f"after serving for {now - process.ready_at:.1f} s"
        return f"{self.reason(process)} {when}"

    def reason(self, process: Process) -> str:
        """Return why the process exited, as one phrase. The board has room for 56 bytes of it."""
        if process.kill_reason:
            return process.kill_reason
        if process.retired_at is not None:
            verb = "finished" if self.code == 0 else "ended"
            return f"{verb} ({process.retire_reason})"
        if self.is_expected(process):
            return f"finished ({SIGNALLED})" if self.code == 0 else f"ended ({SIGNALLED})"
        if self.signal is not None:
            return f"was ended by {self.signal_name}"
        if self.code == LOAD_ERROR or (self.code == BOOT_ERROR and process.ready_at is None):
            return f"could not load the application (exit code {self.code})"
        return f"exited by itself with code {self.code}"
