"""What the arbiter says of what happens: a line in the log, and an event.

Gunicorn's own words stay where it has some.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.runtime.event_log import Journal
from gunicorn_cluster_ext.supervisor.actions import Ended, RollPolicy
from gunicorn_cluster_ext.supervisor.exits import Exit
from gunicorn_cluster_ext.supervisor.slots import Process


class Reporter:
    """Used in the arbiter."""

    def __init__(self, log: Any, journal: Journal) -> None:
        self._log, self._journal = log, journal

    def event(self, event: str, text: str) -> None:
        """Something that gunicorn logs itself, or nobody need read twice."""
        self._journal.write(event, text)

    def serving(self, workers: int, seconds: float) -> None:
        """For the first time all workers serve."""
        self._log.info("All %d workers serve, %.1f s after the start", workers, seconds)

    # --- workers --------------------------------------------------------------------------

    def booting(self, process: Process) -> None:
        self._of_worker("boot", process, None)

    def ready(self, process: Process, pid: int) -> None:
        seconds = (process.ready or process.forked) - process.forked
        self._of_worker("ready", process, pid, f"after {seconds:.1f} s")

    def ended(self, process: Process, pid: int, exit: Exit, words: str) -> None:
        log, stock = self._log.info, _stock_words(pid, exit, process)
        if not exit.is_expected(process):
            is_loud = exit.code or exit.signal == signal.SIGKILL
            log = self._log.error if is_loud else self._log.warning
        log("%sWorker %s (pid:%s) %s.", stock, process.place.slot, pid, words)
        cause = exit.cause(process).name.lower()
        self._of_worker("exit", process, pid, words, cause=cause)

    def _of_worker(
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

    def roll_ended(self, ended: Ended) -> None:
        roll, seconds = ended.roll, time.monotonic() - ended.roll.begun
        if roll.state is RollState.COMMITTED:
            self._log.info("Replaced %d workers in %.1f s", roll.replaced, seconds)
            text = f"replaced {roll.replaced} workers in {seconds:.1f} s"
            self._journal.write("roll committed", text)
            return
        kept = "every worker serves on as before"
        if not ended.undone:
            kept = f"{roll.replaced} of {roll.total} workers are new, and stay"
        self._log.error("Roll failed: %s; %s.", roll.reason, kept)
        self._journal.write("roll failed", f"{roll.reason}; {kept}")

    def refused(self, reason: str) -> None:
        """A reload."""
        self._log.error("Reload refused: %s. Nothing has changed.", reason)
        self._journal.write("reload refused", reason)


class Once(logging.Filter):
    """Keeps gunicorn from saying the same again: it opens its control socket anew at each fork."""

    _MESSAGES = ("Control socket listening at %s", "Control server error: %s")

    def __init__(self) -> None:
        super().__init__()
        self._said = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg not in self._MESSAGES:
            return True
        before, self._said = self._said, record.getMessage()
        return before != self._said


def _stock_words(pid: int, exit: Exit, process: Process) -> str:
    """What gunicorn itself logs of such an exit."""
    if exit.signal and not process.killed and process.told is None:
        perhaps = " Perhaps out of memory?" if exit.signal == signal.SIGKILL else ""
        return f"Worker (pid:{pid}) was sent {exit.signal_name}!{perhaps} "
    return f"Worker (pid:{pid}) exited with code {exit.code}. " if exit.code else ""
