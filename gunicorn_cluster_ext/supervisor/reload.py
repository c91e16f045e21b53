"""A reload's new configuration: read, applied, kept or undone. Runs in the arbiter.

A reload is a transaction: from its beginning to the end of its roll the previous configuration
is kept, with its listening sockets, and comes into force again if the roll is undone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from gunicorn import util
from gunicorn.pidfile import Pidfile

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.settings import SettingError, of_config
from gunicorn_cluster_ext.supervisor import listeners
from gunicorn_cluster_ext.supervisor.arbiter_protocol import SupervisedArbiter
from gunicorn_cluster_ext.supervisor.faults import Faults

_CONFIG_MODULE = "__config__"
#: Settings that gunicorn resolves only when they are used, and the attributes that do so.
_LOOKED_UP = {"worker_class": "worker_class", "bind": "address", "logger_class": "logger_class"}


class ReloadRefused(Exception):
    """The new configuration cannot be used, and nothing has changed. The message says why."""


class Configuration:
    """A snapshot of what a reload changes."""

    def __init__(self, arbiter: SupervisedArbiter) -> None:
        self._app, self.cfg = arbiter.app, arbiter.app.cfg
        self._module = sys.modules.get(_CONFIG_MODULE)
        self._directory = _current_directory()
        self.workers = arbiter.num_workers
        self.listeners = list(arbiter.LISTENERS)

    def restore(self) -> None:
        """Make it the configuration of the application and the environment."""
        _reset_environment(self._app.cfg)
        self._app.cfg = self.cfg
        if self._module is not None:
            sys.modules[_CONFIG_MODULE] = self._module
        _enter(self._directory, self.cfg.chdir)
        os.environ.update(self.cfg.env)


def _current_directory() -> str | None:
    """Return the path of the current directory, or None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _enter(directory: str | None, chdir: str) -> None:
    """Change to ``directory``, or where it is gone to the present target of ``chdir``.

    A deploy may have removed it: the setting ``chdir`` often names a symbolic link to a release.
    If both are gone, the process stays where it is.
    """
    for path in (directory, chdir):
        with contextlib.suppress(OSError):
            if path is not None:
                os.chdir(path)
                return


def _reset_environment(cfg: Any) -> None:
    """Undo what ``cfg`` has set in the environment, as gunicorn does before it reloads."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


class Reload:
    """Changes the configuration of ``arbiter``, and keeps the previous one during a roll."""

    #: True while a new configuration is being applied, and what raises refuses it.
    is_applying = False

    def __init__(self, arbiter: SupervisedArbiter, faults: Faults) -> None:
        self._arbiter, self._faults = arbiter, faults
        self._previous: Configuration | None = None

    @property
    def workers_before(self) -> int:
        """The number of workers that were wanted before the reload."""
        return self._previous.workers if self._previous else 0

    def read(self) -> Configuration:
        """Read the configuration again, without applying it. Raises ReloadRefused."""
        arbiter, present = self._arbiter, Configuration(self._arbiter)
        _reset_environment(arbiter.cfg)
        step: str | None = None
        try:
            if _current_directory() is None:
                _enter(None, arbiter.cfg.chdir)
            arbiter.app.reload()
            # Gunicorn looks these up when they are first used, which is too late.
            for setting, attribute in _LOOKED_UP.items():
                step = setting
                getattr(arbiter.app.cfg, attribute)
            of_config(arbiter.app.cfg)
            return Configuration(arbiter)
        except SettingError as error:
            raise ReloadRefused(str(error)) from error
        except (Exception, SystemExit) as error:
            # Where gunicorn cannot read it, it exits; the exception's context says why.
            context = error.__context__ if isinstance(error, SystemExit) else None
            cause = context or error
            where = step or compat.setting_of(cause) or arbiter.cfg.config
            raise ReloadRefused(f"{where}: {one_line(cause)}") from error
        finally:
            present.restore()

    def apply(self, wanted: Configuration) -> None:
        """Put ``wanted`` in force. Raises ReloadRefused when it cannot be."""
        arbiter, before = self._arbiter, Configuration(self._arbiter)
        step, self.is_applying = "", True
        try:
            wanted.restore()
            step = "bind: "
            self._listen(before)
            step = ""
            arbiter.setup(arbiter.app)
            step = "logging: "
            if compat.has_kept_logging(arbiter.log, arbiter.cfg):
                raise ValueError("the log configuration cannot be used")
            arbiter.log.reopen_files()
            step = f"{arbiter.cfg.worker_class_str}: "
            self._try_worker()
            step = "pidfile: "
            self._mark_process()
            step = "on_reload: "
            arbiter.cfg.on_reload(arbiter)
        except (Exception, SystemExit) as error:
            arbiter.log.debug("Reload refused", exc_info=True)
            self.is_applying = False
            self._return_to(before)
            raise ReloadRefused(f"{step}{one_line(error)}") from error
        self.is_applying = False
        self._previous = before

    def _try_worker(self) -> None:
        """Construct a worker that is never forked: its class, or worker_tmp_dir, may not work."""
        arbiter = self._arbiter
        worker = arbiter.worker_class(
            arbiter.worker_age,
            arbiter.pid,
            arbiter.LISTENERS,
            arbiter.app,
            arbiter.timeout / 2.0,
            arbiter.cfg,
            arbiter.log,
        )
        worker.tmp.close()

    def _listen(self, before: Configuration) -> None:
        arbiter, old, new = self._arbiter, before.cfg, self._arbiter.app.cfg
        # Where systemd opens the sockets, `bind` has no effect.
        is_ours = not new.reuse_port and not arbiter.systemd
        if is_ours and old.address != new.address:
            arbiter.LISTENERS = listeners.renewed(before.listeners, old, new, arbiter.log)
            names = ",".join(str(each) for each in arbiter.LISTENERS)
            arbiter.log.info("Listening at: %s", names)

    def _return_to(self, before: Configuration) -> None:
        """Put ``before`` in force again. What it needs may be gone by now: that is left out."""
        arbiter, contained = self._arbiter, self._faults.contained
        with contained("Restoring the previous configuration"):
            before.restore()
        with contained("Restoring the previous sockets"):
            listeners.close(arbiter.LISTENERS, kept=before.listeners)
        arbiter.LISTENERS = before.listeners
        with contained("Restoring the previous settings"):
            arbiter.setup(arbiter.app)
        with contained("Restoring the previous number of workers"):
            arbiter.num_workers = before.workers
        with contained("Restoring the previous pid file"):
            self._mark_process()

    def _mark_process(self) -> None:
        """Give the process the pid file and the title of the configuration in force."""
        arbiter, wanted = self._arbiter, self._arbiter.cfg.pidfile
        if wanted is not None and arbiter.master_pid:
            wanted += ".2"  # as gunicorn names it as long as the first master runs
        present = arbiter.pidfile.fname if arbiter.pidfile is not None else None
        if present != wanted or (wanted is not None and not os.path.exists(wanted)):
            if arbiter.pidfile is not None:
                arbiter.pidfile.unlink()
            arbiter.pidfile = None
            if wanted is not None:
                pidfile = Pidfile(wanted)
                pidfile.create(arbiter.pid)
                arbiter.pidfile = pidfile
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

        Otherwise the kernel would still accept connections for them when nothing reads them.
        """
        if self._previous is not None:
            for listener in set(self._previous.listeners) - set(self._arbiter.LISTENERS):
                listener.close()
