"""Why a process ended, in words, and whether that was to be expected. No I/O."""

from __future__ import annotations

import signal
from typing import NamedTuple

from gunicorn_cluster_ext.board import State
from gunicorn_cluster_ext.slots import Process

#: What gunicorn's workers exit with when they cannot boot, and when the application cannot load.
BOOT_ERROR = 3
LOAD_ERROR = 4


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

    def words(self, process: Process, now: float) -> str:
        """Why it ended, as one phrase."""
        return f"{self._reason(process)} {_when(process, now)}"

    def _reason(self, process: Process) -> str:
        if process.blamed:
            return process.blamed
        if process.told is not None:
            return f"finished ({process.why})" if self.code == 0 else f"ended ({process.why})"
        if self.is_expected(process):
            return "finished, as somebody asked it to"
        if self.signal is not None:
            return f"was ended by {self.signal_name}"
        if self.code == LOAD_ERROR or (self.code == BOOT_ERROR and process.ready is None):
            return f"could not load the application (exit code {self.code})"
        return f"exited by itself with code {self.code}"


def _when(process: Process, now: float) -> str:
    if process.ready is None:
        return f"before it was ready, {now - process.forked:.1f} s after its start"
    return f"after serving for {now - process.ready:.1f} s"
