"""Server hooks: where the pack meets gunicorn's life cycle.

``install`` chains them around the user's own hooks, which always run. They can also be imported
into a configuration, or called from a hook in it; a second call does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gunicorn import util

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing import asgi, wsgi
from gunicorn_cluster_ext.routing.responses import Affinity
from gunicorn_cluster_ext.runtime import context, counters, identity, proctitle, prometheus_files
from gunicorn_cluster_ext.runtime.board.layout import NO_INBOX, State, Word
from gunicorn_cluster_ext.settings import SettingError, Settings, of_config
from gunicorn_cluster_ext.supervisor.arbiter import adopt

Hook = Callable[..., Any]

__all__ = [
    "on_reload",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "pre_fork",
    "worker_exit",
]


def on_starting(server: Any) -> None:
    """Adopt the arbiter, whatever its worker class. The pack's own worker classes do not need it:
    for them the first ``pre_fork`` adopts it."""
    prepare(server.cfg, server.log)
    adopt(server, server.cfg.cluster_settings, install)


def prepare(cfg: Any, log: Any) -> Settings:
    """Read the settings and chain the hooks, once for each ``cfg``.

    It exits with status 1 when a setting cannot be used. Called in the arbiter, by
    ``on_starting`` or the worker class's ``check_config``.
    """
    settings: Settings | None = getattr(cfg, "cluster_settings", None)
    if settings is None:
        try:
            settings = of_config(cfg)
        except SettingError as error:
            log.error("%s", error)
            sys.exit(1)
        install(cfg, settings)
    return settings


def install(cfg: Any, settings: Settings) -> None:
    """Chain our hooks with the user's in ``cfg``. Each reload makes a new ``cfg``."""
    cfg.cluster_settings = settings
    context.use(settings)
    for name, (before, after) in _HOOKS.items():
        hook = getattr(cfg, name)
        hook = _chain(before, hook) if before else hook
        cfg.set(name, _chain(hook, after) if after else hook)


def _chain(first: Hook, second: Hook) -> Hook:
    """Return a hook that calls both. Gunicorn checks a hook's arity, hence the two shapes."""
    if util.get_arity(first) == 1:

        def one(server: Any) -> None:
            first(server)
            second(server)

        return one

    def two(server: Any, worker: Any) -> None:
        first(server, worker)
        second(server, worker)

    return two


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker its place. Runs in the arbiter, before the user's hook."""
    arbiter = adopt(server, prepare(server.cfg, server.log), install)
    if getattr(worker, "place", None) is None:
        arbiter.assign_place(worker)


def _about_to_fork(server: Any, worker: Any) -> None:
    """Assign the worker's identity to the next fork. Runs in the arbiter, after the user's
    ``pre_fork``, which may itself fork."""
    identity.assign(worker.place.slot, worker.place.generation)
    if hasattr(server.log, "error_log"):  # a user's own logger class may have none
        identity.mark_log(server.log.error_log, server.log.error_fmt)


def post_fork(server: Any, worker: Any) -> None:
    """Join the server's shared state as this worker. Runs in the worker, before the user's hook."""
    server.in_worker()
    board, seat = worker.shared.board, worker.place.seat
    board.set(seat, Word.PID, worker.pid)
    context.join(worker.shared.settings, board, seat)
    prometheus_files.join(board.master_pid, seat)
    proctitle.set_worker(f"worker {worker.place.slot} [{server.proc_name}]")


def post_worker_init(worker: Any) -> None:
    """Prepare the loaded application. Runs in the worker, after the user's hook.

    ``max_requests`` moves from the worker to the arbiter, which has the replacement ready before
    it retires the worker; by itself the worker would exit first.
    """
    board, seat = worker.shared.board, worker.place.seat
    _wrap_application(worker)
    board.set(seat, Word.THREADS, worker.cfg.threads)
    if worker.max_requests < sys.maxsize:
        board.set(seat, Word.MAX_REQUESTS, worker.max_requests)
        worker.max_requests = sys.maxsize
    if not _reads_inbox(worker) and "notify" not in vars(worker):
        worker.notify = _publishing(worker)


def _wrap_application(worker: Any) -> None:
    """Wrap the application, so that its responses are tagged with their worker."""
    name = "asgi" if hasattr(worker, "asgi") else "wsgi"
    app = getattr(worker, name)
    if isinstance(app, wsgi.AffinityMiddleware | asgi.AffinityMiddleware) or compat.is_tornado(app):
        return
    cookie = worker.shared.settings.cookie if getattr(worker, "sets_cookie", False) else None
    learner = getattr(worker, "learner", None)
    affinity = Affinity(worker.place.slot, cookie, worker.shared.board.seat_of_slot, learner)
    if name == "asgi" or compat.is_asgi(app):
        setattr(worker, name, asgi.AffinityMiddleware(app, affinity))
    else:
        setattr(worker, name, wsgi.AffinityMiddleware(app, affinity, counters.websockets.add))


def _reads_inbox(worker: Any) -> bool:
    """Return whether the worker's class is of this pack: such a worker publishes its own state."""
    return bool(getattr(worker, "reads_inbox", False))


def _publishing(worker: Any) -> Callable[[], None]:
    """Return a heartbeat for one of gunicorn's own workers that also publishes its state.

    The first heartbeat comes when the worker serves: for the asgi worker after the application's
    startup.
    """
    notify, board, seat = worker.notify, worker.shared.board, worker.place.seat

    def notify_and_publish() -> None:
        notify()
        board.set(seat, Word.REQUESTS, worker.nr)
        if board.state(seat) is State.BOOTING and worker.alive:
            proctitle.show_state(State.READY)
            board.set(seat, Word.STATE, State.READY | NO_INBOX)

    return notify_and_publish


def worker_exit(server: Any, worker: Any) -> None:
    """Publish that the worker was asked to finish. Runs in the worker, before the user's hook."""
    if identity.current_worker() is not None and not _reads_inbox(worker) and not worker.alive:
        worker.shared.board.set(worker.place.seat, Word.STATE, State.DRAINING | NO_INBOX)


def on_reload(server: Any) -> None:
    """Warn of what a reload cannot do. Runs in the arbiter, before the user's hook."""
    if server.cfg.preload_app:
        server.log.warning(
            "preload_app: the application was loaded before the workers were forked, so this "
            "reload restarts them with the same code. Send USR2 and then TERM to the old master, "
            "or restart, to load new code; or do not use preload_app."
        )


#: The hooks that run before and after the user's hook of each name.
_HOOKS: dict[str, tuple[Hook | None, Hook | None]] = {
    "pre_fork": (pre_fork, _about_to_fork),
    "post_fork": (post_fork, None),
    "post_worker_init": (None, post_worker_init),
    "worker_exit": (worker_exit, None),
    "on_reload": (on_reload, None),
}

# However the pack is set up, this module is imported before the arbiter logs its first line or
# loads an application.
identity.watch()
prometheus_files.watch()
