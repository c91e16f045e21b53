"""The arbiter's net: a failure costs the piece of work in which it happens, never the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.supervisor.cluster import Cluster

#: How often failures of one kind of work are logged.
_LOG_INTERVAL_S: Final = 60.0


class Faults:
    """Counts and logs what has failed in the arbiter: no descriptors, no memory, a user's hook."""

    def __init__(self, cluster: Cluster, log: Any) -> None:
        self._board, self._lifecycle, self._log = cluster.board, cluster.lifecycle, log
        self._pid = os.getpid()
        self._log_after: dict[str, float] = {}

    @contextmanager
    def contained(self, work: str) -> Iterator[None]:
        """Run a block of the arbiter's ``work``, such as "Publishing the status".

        An exception ends the block and is counted. HaltServer and SystemExit pass; so does every
        exception in a forked child, and in a server that has never served, which ends as with
        gunicorn's own arbiter.
        """
        try:
            yield
        except Exception as error:
            if os.getpid() != self._pid or not self._lifecycle.has_served:
                raise
            self.note(work, error)

    def note(self, work: str, error: Exception) -> None:
        """Count a failure, and log it with its traceback at most once a minute for ``work``."""
        self._board.faults += 1
        now = time.monotonic()
        if now >= self._log_after.get(work, now):
            self._log_after[work] = now + _LOG_INTERVAL_S
            self._log.error(
                "%s failed, and the server continues: %s (said at most once a minute)",
                work,
                one_line(error),
                exc_info=error,
            )
