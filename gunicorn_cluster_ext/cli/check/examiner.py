"""Finds the facts for ``gunicorn-cluster check``, in processes of its own.

    check --+-- examiner: reads the configuration as the master does
            |      |-- worker 0: loads the application, and looks at it
            |      `-- worker 1: the same, for what ought to be the same in both
            `-- reads two lines of JSON from a pipe: Configuration, and then Facts

Whatever the application does when it is imported, it does it there.
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
from typing import Any

import msgspec

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.cli.check.findings import Configuration, Facts, Loaded
from gunicorn_cluster_ext.cli.check.inspection import look
from gunicorn_cluster_ext.cli.files import load
from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.runtime import context, identity, prometheus_files
from gunicorn_cluster_ext.runtime.directory import make_directory
from gunicorn_cluster_ext.session.cookie import SessionCookie
from gunicorn_cluster_ext.settings import SettingError, Settings, executed_config, of_config

_WORKERS = 2
_EXIT_S = 5.0
#: Files that every process has open anyway.
_SOME_FILES = 64
#: How much of a traceback is the application's own, as a rule.
_FRAMES = 4


def main(fd: int, arguments: list[str]) -> None:
    """Write the facts to ``fd``. What gunicorn itself cannot read ends this process."""
    app = load(arguments)
    configuration, settings = _configured(app)
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
    """The lines that come from a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self.are_over = False

    def next(self, seconds: float | None) -> bytes | None:
        """None if it does not come, or not within ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._data:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._fd], [], [], left)
            more = os.read(self._fd, 65536) if ready else b""
            if not more:
                self.are_over = bool(ready)
                return None
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line


# --- the configuration ----------------------------------------------------------------------------


def _configured(app: Any) -> tuple[Configuration, Settings | None]:
    cfg, uri = app.cfg, app.app_uri
    try:
        settings, kind = of_config(cfg), cfg.worker_class
    except SettingError as error:
        return Configuration(uri, str(error)), None
    except Exception as error:
        return Configuration(uri, f"worker_class: {one_line(error)}"), None
    if not isinstance(kind, type):  # so gunicorn answers for a module that has no such class
        return Configuration(uri, f"worker_class: there is no {kind}"), None
    threads = getattr(kind, "choose_threads", None)
    if threads is not None:
        threads(cfg, settings.threads)
    names = {each.__name__ for each in kind.__mro__}
    return Configuration(
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
        foreign_user=_foreign_user(cfg),
        unwritable=_unwritable(cfg, settings),
        cookie_error=_cookie_error(settings),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        needed_files=_needed_files(cfg, settings),
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


def _foreign_user(cfg: Any) -> str:
    me = os.geteuid()
    return str(cfg.uid) if me and cfg.uid != me else ""


def _unwritable(cfg: Any, settings: Settings) -> str:
    try:
        shutil.rmtree(make_directory(settings.dir, cfg.uid, cfg.gid))
    except OSError as error:
        return str(error)
    return ""


def _cookie_error(settings: Settings) -> str:
    try:
        SessionCookie.of(settings)
    except SettingError as error:
        return str(error)
    return ""


def _needed_files(cfg: Any, settings: Settings) -> int:
    slots: int = settings.capacity(cfg.workers)
    return int(cfg.worker_connections) + 4 * slots + _SOME_FILES


# --- the application ------------------------------------------------------------------------------


def _workers(app: Any, settings: Settings) -> list[Loaded]:
    """Load the application in several processes at once, as workers do."""
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
    """What gunicorn and the pack do in the master before an application is loaded."""
    os.environ.update(app.cfg.env)
    for path in filter(None, (app.cfg.pythonpath or "").split(",")):
        sys.path.insert(0, os.path.abspath(path))
    # An application may count as it is loaded: this is no worker of a server that it counts for.
    os.environ.pop(prometheus_files.ENVIRONMENT, None)
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


def _loaded(app: Any, settings: Settings) -> Loaded:
    try:
        return look(app.wsgi(), settings)
    except (Exception, SystemExit) as error:
        return _failed(error)


def _failed(error: BaseException) -> Loaded:
    return Loaded(one_line(error), "".join(traceback.format_exception(error, limit=-_FRAMES)))


def _result(pid: int, reader: int, deadline: float | None) -> Loaded:
    left = None if deadline is None else max(deadline - time.monotonic(), 0)
    lines = Lines(reader)
    line = lines.next(left)
    os.close(reader)
    if line is not None:
        os.waitpid(pid, 0)
        return msgspec.json.decode(line, type=Loaded)
    if lines.are_over and _ends(pid):
        return Loaded("it ended the process")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Loaded(hung=True)


def _ends(pid: int) -> bool:
    """Whether it ends by itself: a process that does has closed its end of the pipe before."""
    deadline = time.monotonic() + _EXIT_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.01)
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
