"""A reload's new configuration: taken, kept or put back. Runs in the arbiter.

Between a reload and the end of its roll the old configuration is kept, with its listening
sockets: if the roll comes to nothing, it is in force again.
"""

from __future__ import annotations

import time
from typing import Any

from gunicorn import util
from gunicorn.pidfile import Pidfile

from gunicorn_cluster_ext.settings import SettingError, of_config
from gunicorn_cluster_ext.supervisor import listeners
from gunicorn_cluster_ext.supervisor.configuration import (
    Configuration,
    Unreadable,
    describe,
    forget_environment,
    read_anew,
)


class Deployment:
    """The configuration of ``arbiter``, and the one before it while that may be needed."""

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._before: Configuration | None = None

    @property
    def workers_before(self) -> int:
        """How many workers were wanted before the reload."""
        return self._before.workers if self._before else 0

    def read(self) -> Configuration | None:
        """What the configuration says now, or None if it cannot be used. Changes nothing."""
        arbiter, present = self._arbiter, Configuration(self._arbiter)
        forget_environment(arbiter.cfg)
        try:
            read_anew(arbiter.app)
            of_config(arbiter.app.cfg)
        except (Unreadable, SettingError) as error:
            present.put_back()
            self._refuse(str(error))
            return None
        wanted = Configuration(arbiter)
        present.put_back()
        return wanted

    def _refuse(self, reason: str) -> None:
        cluster, reason = self._arbiter.cluster, reason.rstrip(".")
        cluster.reporter.refused(reason)
        replacer, now = cluster.supervisor.replacer, time.monotonic()
        if replacer.refuse(reason, self._arbiter.num_workers, now):
            cluster.board.count_roll(committed=False)

    def take(self, wanted: Configuration) -> bool:
        """Whether ``wanted`` is now in use; if it cannot be, all is as it was."""
        arbiter, before = self._arbiter, Configuration(self._arbiter)
        wanted.put_back()
        try:
            self._listen(before)
            arbiter.setup(arbiter.app)
            arbiter.log.reopen_files()
            arbiter.cfg.on_reload(arbiter)
        except (Exception, SystemExit) as error:
            arbiter.log.debug("Reload refused", exc_info=True)
            self._return_to(before)
            self._refuse(describe(error))
            return False
        self._before = before
        self._mark_process()
        return True

    def _listen(self, before: Configuration) -> None:
        arbiter, old, new = self._arbiter, before.cfg, self._arbiter.app.cfg
        # Where systemd listens, the configuration has no say.
        is_ours = not new.reuse_port and not arbiter.systemd
        if is_ours and old.address != new.address:
            arbiter.LISTENERS = listeners.renewed(before.listeners, old, new, arbiter.log)
            names = ",".join(str(each) for each in arbiter.LISTENERS)
            arbiter.log.info("Listening at: %s", names)

    def _return_to(self, before: Configuration) -> None:
        arbiter = self._arbiter
        before.put_back()
        listeners.close(arbiter.LISTENERS, kept=before.listeners)
        arbiter.LISTENERS = before.listeners
        arbiter.setup(arbiter.app)
        arbiter.num_workers = before.workers
        self._mark_process()

    def _mark_process(self) -> None:
        """The pid file and the title that the configuration wants."""
        arbiter = self._arbiter
        if arbiter.pidfile is not None:
            arbiter.pidfile.unlink()
        if arbiter.cfg.pidfile is not None:
            arbiter.pidfile = Pidfile(arbiter.cfg.pidfile)
            arbiter.pidfile.create(arbiter.pid)
        util._setproctitle(f"master [{arbiter.proc_name}]")

    def is_over(self, *, undone: bool) -> None:
        """The roll has ended. ``undone``: nothing of it is left. Also when the server ends."""
        before, self._before = self._before, None
        if before is not None and undone:
            self._return_to(before)
        elif before is not None:
            listeners.close(before.listeners, kept=self._arbiter.LISTENERS)

    def close_in_worker(self) -> None:
        """Close what belongs to the old configuration only.

        Or the kernel would go on accepting for it, when nobody else has it any more.
        """
        if self._before is not None:
            for listener in set(self._before.listeners) - set(self._arbiter.LISTENERS):
                listener.close()
