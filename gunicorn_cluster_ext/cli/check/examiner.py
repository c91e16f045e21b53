"""Collects the facts for ``gunicorn-cluster check``, in processes of its own.

    check --+-- examiner: reads the configuration as the master does
            |      |-- worker 0: loads the application, and inspects it
            |      `-- worker 1: does the same, to find what differs between the two
            `-- reads two lines of JSON from a pipe: ConfigFacts, then Facts

So any side effects of importing the application happen there.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.cli.check.findings import AppFacts, ConfigFacts, Facts
from gunicorn_cluster_ext.cli.check.inspection import look
from gunicorn_cluster_ext.cli.files import load_app
from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.runtime import context, identity, prometheus_files
from gunicorn_cluster_ext.runtime.directory import make_directory
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.settings import SettingError, Settings, executed_config, of_config

_WORKERS = 2
_EXIT_TIMEOUT_S = 5.0
#: Files that a process has open besides connections and inboxes.
_OTHER_FILES = 64
#: The innermost frames of a traceback, which are usually the application's own.
_FRAMES = 4


def main(fd: int, arguments: list[str]) -> None:
    """Write the facts to ``fd``. Exit if gunicorn itself cannot read the configuration."""
    app = load_app(arguments)
    configuration, settings = _configuration_facts(app)
    _write(fd, configuration)
    facts = Facts(configuration)
    if settings is not None:
        facts.workers = _workers(app, settings)
    _write(fd, facts)


def _write(fd: int, what: msgspec.Struct) -> None:
    data = msgspec.json.encode(what) + b"\n"
    while data:
        data = data[os.write(fd, data) :]


class Lines:
    """The lines that arrive through a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self.is_closed = False

    def next(self, seconds: float | None) -> bytes | None:
        """Return the next line, or None at the end of the pipe or after ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._data:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._fd], [], [], left)
            more = os.read(self._fd, 65536) if ready else b""
            if not more:
                self.is_closed = bool(ready)
                return None
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line


# --- the configuration ----------------------------------------------------------------------------


def _configuration_facts(app: Any) -> tuple[ConfigFacts, Settings | None]:
    cfg, uri = app.cfg, app.app_uri
    try:
        settings, kind = of_config(cfg), cfg.worker_class
    except SettingError as error:
        return ConfigFacts(uri, str(error)), None
    except Exception as error:
        return ConfigFacts(uri, f"worker_class: {one_line(error)}"), None
    if not isinstance(kind, type):  # gunicorn returns a string if the module has no such class
        return ConfigFacts(uri, f"worker_class: there is no {kind}"), None
    threads = getattr(kind, "choose_threads", None)
    if threads is not None:
        threads(cfg, settings.threads)
    names = {each.__name__ for each in kind.__mro__}
    return ConfigFacts(
        app=uri,
        worker_class=cfg.worker_class_str,
        is_sticky=bool(getattr(kind, "reads_inbox", False)),
        is_asgi=bool(names & {"ASGIWorker", "UvicornWorker"}),
        is_threaded=bool(names & {"ThreadWorker", "SyncWorker"}),
        workers=cfg.workers,
        workers_are_set=_workers_are_set(cfg),
        threads=cfg.threads,
        addresses=[_address(each) for each in cfg.address],
        reuse_port=cfg.reuse_port,
        preload=cfg.preload_app,
        reads_heads=compat.can_read_heads(cfg),
        rules=list(settings.sticky),
        store=settings.store,
        full_rollback=settings.roll_rollback == "full",
        health_path=settings.health_path,
        startup_timeout=settings.startup_timeout,
        foreign_user=str(cfg.uid) if os.geteuid() not in (0, cfg.uid) else "",
        unwritable=_error(
            OSError, lambda: shutil.rmtree(make_directory(settings.dir, cfg.uid, cfg.gid, Path))
        ),
        cookie_error=_error(SettingError, lambda: SessionCookie.of(settings)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        # A worker holds both ends of the inboxes of two seats per slot.
        needed_files=cfg.worker_connections + 4 * settings.capacity(cfg.workers) + _OTHER_FILES,
    ), settings


def _workers_are_set(cfg: Any) -> bool:
    if "WEB_CONCURRENCY" not in os.environ or "workers" in executed_config(cfg.config):
        return True
    return any(word.startswith(("-w", "--workers")) for word in compat.command_line(cfg))


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        host, port = address
        return f"[{host}]:{port}" if ":" in host else f"{host or '0.0.0.0'}:{port}"
    return f"unix:{address}" if isinstance(address, str) else f"fd://{address}"


def _error(kind: type[Exception], work: Callable[[], object]) -> str:
    """Return the message of the error of this kind that ``work`` raises, or ""."""
    try:
        work()
    except kind as error:
        return str(error)
    return ""


# --- the application ------------------------------------------------------------------------------


def _workers(app: Any, settings: Settings) -> list[AppFacts]:
    """Load the application in several processes at once, as workers do, and return their facts."""
    _prepare(app, settings)
    if app.cfg.preload_app:
        try:
            app.wsgi()
        except (Exception, SystemExit) as error:
            return [_failed(error)] * _WORKERS
    started = [_start(app, settings, slot) for slot in range(_WORKERS)]
    limit = settings.startup_timeout or None
    deadline = None if limit is None else time.monotonic() + limit
    return [_result(pid, reader, deadline) for pid, reader in started]


def _prepare(app: Any, settings: Settings) -> None:
    """Do what gunicorn and the pack do in the master before they load an application."""
    os.environ.update(app.cfg.env)
    for path in filter(None, (app.cfg.pythonpath or "").split(",")):
        sys.path.insert(0, os.path.abspath(path))
    # Applications may count while they are loaded, and this is not a worker of a server.
    os.environ.pop(prometheus_files.DIRECTORY_VARIABLE, None)
    context.use(settings)
    identity.watch()


def _start(app: Any, settings: Settings, slot: int) -> tuple[int, int]:
    reader, writer = os.pipe()
    identity.assign(slot, 1)
    pid = os.fork()
    if not pid:
        try:
            _write(writer, _loaded(app, settings))
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader


def _loaded(app: Any, settings: Settings) -> AppFacts:
    try:
        return look(app.wsgi(), settings)
    except (Exception, SystemExit) as error:
        return _failed(error)


def _failed(error: BaseException) -> AppFacts:
    return AppFacts(one_line(error), "".join(traceback.format_exception(error, limit=-_FRAMES)))


def _result(pid: int, reader: int, deadline: float | None) -> AppFacts:
    left = None if deadline is None else max(deadline - time.monotonic(), 0)
    lines = Lines(reader)
    line = lines.next(left)
    os.close(reader)
    if line is not None:
        os.waitpid(pid, 0)
        return msgspec.json.decode(line, type=AppFacts)
    if lines.is_closed and _exits(pid):
        return AppFacts("it ended the process")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return AppFacts(hung=True)


def _exits(pid: int) -> bool:
    """Return whether a process that has closed its end of the pipe exits by itself."""
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.01)
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
