"""A reload's new configuration: read, applied, kept or undone. Runs in the arbiter.

A reload is a transaction: from its beginning to the end of its roll the previous configuration
is kept, with its listening sockets, and comes into force again if the roll is undone.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from gunicorn import util
from gunicorn.pidfile import Pidfile

from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.settings import SettingError, of_config
from gunicorn_cluster_ext.supervisor import listeners
from gunicorn_cluster_ext.supervisor.arbiter_protocol import SupervisedArbiter

_CONFIG_MODULE = "__config__"


class ReloadRefused(Exception):
    """The new configuration cannot be used, and nothing has changed. The message says why."""


class Configuration:
    """A snapshot of what a reload changes."""

    def __init__(self, arbiter: SupervisedArbiter) -> None:
        self._app, self.cfg = arbiter.app, arbiter.app.cfg
        self._module = sys.modules.get(_CONFIG_MODULE)
        self._directory = os.getcwd()
        self.workers = arbiter.num_workers
        self.listeners = list(arbiter.LISTENERS)

    def restore(self) -> None:
        """Make it the configuration of the application and the environment."""
        _reset_environment(self._app.cfg)
        self._app.cfg = self.cfg
        if self._module is not None:
            sys.modules[_CONFIG_MODULE] = self._module
        os.chdir(self._directory)
        os.environ.update(self.cfg.env)


def _reset_environment(cfg: Any) -> None:
    """Undo what ``cfg`` has set in the environment, as gunicorn does before it reloads."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


class Reload:
    """Changes the configuration of ``arbiter``, and keeps the previous one during a roll."""

    def __init__(self, arbiter: SupervisedArbiter) -> None:
        self._arbiter = arbiter
        self._previous: Configuration | None = None

    @property
    def workers_before(self) -> int:
        """The number of workers that were wanted before the reload."""
        return self._previous.workers if self._previous else 0

    def read(self) -> Configuration:
        """Read the configuration again, without applying it. Raises ReloadRefused."""
        arbiter, present = self._arbiter, Configuration(self._arbiter)
        _reset_environment(arbiter.cfg)
        try:
            arbiter.app.reload()
            # Gunicorn looks these up when they are first used, which is too late.
            _ = arbiter.app.cfg.worker_class, arbiter.app.cfg.address, arbiter.app.cfg.logger_class
            of_config(arbiter.app.cfg)
            return Configuration(arbiter)
        except SettingError as error:
            raise ReloadRefused(str(error)) from error
        except (Exception, SystemExit) as error:
            # Where gunicorn cannot read it, it exits; the exception's context says why.
            cause = error.__context__ if isinstance(error, SystemExit) else None
            raise ReloadRefused(one_line(cause or error)) from error
        finally:
            present.restore()

    def apply(self, wanted: Configuration) -> None:
        """Put ``wanted`` in force. Raises ReloadRefused when it cannot be."""
        arbiter, before = self._arbiter, Configuration(self._arbiter)
        wanted.restore()
        try:
            self._listen(before)
            arbiter.setup(arbiter.app)
            arbiter.log.reopen_files()
            arbiter.cfg.on_reload(arbiter)
        except (Exception, SystemExit) as error:
            arbiter.log.debug("Reload refused", exc_info=True)
            self._return_to(before)
            raise ReloadRefused(one_line(error)) from error
        self._previous = before
        self._mark_process()

    def _listen(self, before: Configuration) -> None:
        arbiter, old, new = self._arbiter, before.cfg, self._arbiter.app.cfg
        # Where systemd opens the sockets, `bind` has no effect.
        is_ours = not new.reuse_port and not arbiter.systemd
        if is_ours and old.address != new.address:
            arbiter.LISTENERS = listeners.renewed(before.listeners, old, new, arbiter.log)
            names = ",".join(str(each) for each in arbiter.LISTENERS)
            arbiter.log.info("Listening at: %s", names)

    def _return_to(self, before: Configuration) -> None:
        arbiter = self._arbiter
        before.restore()
        listeners.close(arbiter.LISTENERS, kept=before.listeners)
        arbiter.LISTENERS = before.listeners
        arbiter.setup(arbiter.app)
        arbiter.num_workers = before.workers
        self._mark_process()

    def _mark_process(self) -> None:
        """Give the process the pid file and the title of the configuration in force."""
        arbiter = self._arbiter
        if arbiter.pidfile is not None:
            arbiter.pidfile.unlink()
        if arbiter.cfg.pidfile is not None:
            arbiter.pidfile = Pidfile(arbiter.cfg.pidfile)
            arbiter.pidfile.create(arbiter.pid)
        util._setproctitle(f"master [{arbiter.proc_name}]")

    def roll_ended(self, *, undone: bool) -> None:
        """End the transaction, because its roll or the whole server has ended.

        ``undone``: return to the previous configuration.
        """
        before, self._previous = self._previous, None
        if before is not None and undone:
            self._return_to(before)
        elif before is not None:
            listeners.close(before.listeners, kept=self._arbiter.LISTENERS)

    def close_in_worker(self) -> None:
        """Close the listening sockets that only the previous configuration has.

        Otherwise the kernel would accept connections for them when nobody reads them any more.
        """
        if self._previous is not None:
            for listener in set(self._previous.listeners) - set(self._arbiter.LISTENERS):
                listener.close()
