"""Reports what happens to the server and its workers: a line in the log, and an event.

Where gunicorn has a message of its own, the line begins with it.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.runtime.event_log import Journal
from gunicorn_cluster_ext.supervisor.actions import RollEnded, RollPolicy
from gunicorn_cluster_ext.supervisor.exits import Exit
from gunicorn_cluster_ext.supervisor.lifecycle import ExitOutcome
from gunicorn_cluster_ext.supervisor.slots import Process


class Reporter:
    """Used in the arbiter."""

    def __init__(self, log: Any, journal: Journal) -> None:
        self._log, self._journal = log, journal
        # A user's own logger class need not have the attributes of gunicorn's.
        if (error_log := getattr(log, "error_log", None)) is not None:
            error_log.addFilter(RepeatedLines())

    def event(self, event: str, text: str) -> None:
        """Write an event that needs no line in the log; gunicorn logs most of these itself."""
        self._journal.write(event, text)

    def serving(self, workers: int, seconds: float) -> None:
        """Report that all workers serve for the first time, ``seconds`` after the start."""
        self._log.info("All %d workers serve, %.1f s after the start", workers, seconds)

    # --- workers --------------------------------------------------------------------------

    def booting(self, process: Process) -> None:
        self._worker_event("boot", process, None)

    def ready(self, process: Process, pid: int) -> None:
        seconds = (process.ready_at or process.forked_at) - process.forked_at
        self._worker_event("ready", process, pid, f"after {seconds:.1f} s")

    def exited(self, process: Process, pid: int, exit: Exit, outcome: ExitOutcome) -> None:
        text, log = outcome.text, self._log.info
        if outcome.delay is not None:
            text += f"; its replacement waits {outcome.delay:.1f} s"
        if not outcome.expected:
            is_loud = exit.code or exit.signal == signal.SIGKILL
            log = self._log.error if is_loud else self._log.warning
        stock = _stock_message(process, pid, exit)
        log("%sWorker %s (pid:%s) %s.", stock, process.place.slot, pid, text)
        self._worker_event("exit", process, pid, text, cause=exit.cause(process).name.lower())

    def _worker_event(
        self, event: str, process: Process, pid: int | None, text: str = "", **fields: Any
    ) -> None:
        slot, _, generation = process.place
        self._journal.write(event, text, worker=slot, generation=generation, pid=pid, **fields)

    def control(self, text: str, *, ok: bool) -> None:
        """Report the reply to a control request."""
        text = text if ok else f"refused: {text}"
        self._log.info("gunicorn-cluster: %s", text)
        self._journal.write("control", text)

    # --- rolls ----------------------------------------------------------------------------

    def roll_began(self, policy: RollPolicy) -> None:
        self._log.info(
            "Replacing %d workers (surge %d, unavailable %d)",
            policy.target,
            policy.surge,
            policy.unavailable,
        )
        self._journal.write("roll", f"replacing {policy.target} workers")

    def roll_ended(self, ended: RollEnded) -> None:
        roll, seconds = ended.roll, time.monotonic() - ended.roll.begun
        if roll.state is RollState.COMMITTED:
            self._log.info("Replaced %d workers in %.1f s", roll.replaced, seconds)
            text = f"replaced {roll.replaced} workers in {seconds:.1f} s"
            self._journal.write("roll committed", text)
            return
        kept = "the previous workers keep serving"
        if not ended.undone:
            kept = f"{roll.replaced} of {roll.total} workers stay replaced"
        self._log.error("Roll failed: %s; %s.", roll.reason, kept)
        self._journal.write("roll failed", f"{roll.reason}; {kept}")

    def reload_refused(self, reason: str) -> None:
        self._log.error("Reload refused: %s. Nothing has changed.", reason)
        self._journal.write("reload refused", reason)


def _stock_message(process: Process, pid: int, exit: Exit) -> str:
    """Return what gunicorn itself logs of such an exit, or ""."""
    if exit.signal and not process.killed and process.retired_at is None:
        perhaps = " Perhaps out of memory?" if exit.signal == signal.SIGKILL else ""
        return f"Worker (pid:{pid}) was sent {exit.signal_name}!{perhaps} "
    return f"Worker (pid:{pid}) exited with code {exit.code}. " if exit.code else ""


class RepeatedLines(logging.Filter):
    """Drops gunicorn's repeated lines about its control socket, which it reopens at each fork."""

    _MESSAGES = ("Control socket listening at %s", "Control server error: %s")

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg not in self._MESSAGES:
            return True
        before, self._last = self._last, record.getMessage()
        return before != self._last
