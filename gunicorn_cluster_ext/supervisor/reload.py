"""A reload's new configuration: taken, kept or put back. Runs in the arbiter.

Between a reload and the end of its roll the old configuration is kept, with its listening
sockets: if the roll comes to nothing, it is in force again.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from gunicorn import util
from gunicorn.pidfile import Pidfile

from gunicorn_cluster_ext.settings import SettingError, of_config
from gunicorn_cluster_ext.supervisor import listeners


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


_CONFIG_MODULE = "__config__"


class Unreadable(Exception):
    """A configuration that cannot be used; the message says why."""


class Configuration:
    """What a reload changes, as it is when this is made. Used in the arbiter."""

    def __init__(self, arbiter: Any) -> None:
        self._app, self.cfg = arbiter.app, arbiter.app.cfg
        self._module = sys.modules.get(_CONFIG_MODULE)
        self._directory = os.getcwd()
        self.workers: int = arbiter.num_workers
        self.listeners: list[Any] = list(arbiter.LISTENERS)

    def put_back(self) -> None:
        """Make it what the application and the environment have."""
        forget_environment(self._app.cfg)
        self._app.cfg = self.cfg
        if self._module is not None:
            sys.modules[_CONFIG_MODULE] = self._module
        os.chdir(self._directory)
        os.environ.update(self.cfg.env)


def forget_environment(cfg: Any) -> None:
    """Take back what ``cfg`` has set in the environment, as gunicorn does before it reloads."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


def read_anew(app: Any) -> None:
    """Let gunicorn read the configuration of ``app`` again. Raises Unreadable.

    Gunicorn ends the process when it cannot; what it had to say is the exception's context.
    """
    try:
        app.reload()
        # These are looked up when they are first used; now is better.
        _ = app.cfg.worker_class, app.cfg.address, app.cfg.logger_class
    except (Exception, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        raise Unreadable(describe(cause or error)) from error


def describe(error: BaseException) -> str:
    """In one line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
