"""Taking a new configuration in a running arbiter, so that it can be undone."""

from __future__ import annotations

import os
import sys
from typing import Any

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
