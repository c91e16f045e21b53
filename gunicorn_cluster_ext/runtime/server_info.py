"""What a server is: versions, addresses, application, settings. A file in its directory.

Written by the arbiter when it begins and after each reload; the command line reads it. What only
the arbiter needs is imported there, because ``status`` is to be quick.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.runtime.directory import give_away

if TYPE_CHECKING:
    from gunicorn_cluster_ext.settings import Settings

SERVER_INFO_FILE = "server.json"


class ServerInfo(NamedTuple):
    """``started`` is the wall clock's time when the server began, in seconds. ``settings`` are
    those of this pack that somebody has set, and what of gunicorn's own goes with them."""

    pack: str
    gunicorn: str
    python: str
    started: float
    app: str
    addresses: list[str]
    worker_class: str
    store: str
    restart_limit: tuple[int, float] | None
    settings: dict[str, Any]


def of(arbiter: Any, settings: Settings) -> ServerInfo:
    """What the arbiter's configuration says now."""
    from gunicorn import __version__ as gunicorn_version

    cfg = arbiter.cfg
    return ServerInfo(
        pack=__version__,
        gunicorn=gunicorn_version,
        python=".".join(map(str, sys.version_info[:3])),
        started=arbiter._stats["start_time"],
        app=getattr(arbiter.app, "app_uri", None) or arbiter.proc_name,
        addresses=[str(listener) for listener in arbiter.LISTENERS],
        worker_class=cfg.worker_class_str,
        store=_without_secret(settings.store),
        restart_limit=settings.restart_limit,
        settings=_of_gunicorn(cfg) | _changed(settings),
    )


def _of_gunicorn(cfg: Any) -> dict[str, Any]:
    names = ("workers", "threads", "timeout", "graceful_timeout", "max_requests", "preload_app")
    return {name: getattr(cfg, name) for name in names}


def _changed(settings: Settings) -> dict[str, Any]:
    """Those that are not as they are by default."""
    defaults = vars(type(settings)())
    return {
        f"cluster_{name}": _without_secret(value) if isinstance(value, str) else value
        for name, value in vars(settings).items()
        if value != defaults[name]
    }


def _without_secret(text: str) -> str:
    """A URL less its user, password and query."""
    return re.sub(r"//[^/]*@", "//", text.partition("?")[0]) if "://" in text else text


def write(directory: Path, description: ServerInfo) -> None:
    """At once: who reads finds the old or the new. Raises OSError."""
    written = directory / f"{SERVER_INFO_FILE}.new"
    written.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(written, flags, 0o600), "w") as file:
        give_away(file.fileno(), directory)
        json.dump(description._asdict(), file, default=str)
    written.replace(directory / SERVER_INFO_FILE)


def read(directory: Path) -> ServerInfo | None:
    """None if there is none that can be read: the directory was full, or is of another version."""
    try:
        return ServerInfo(**json.loads((directory / SERVER_INFO_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
