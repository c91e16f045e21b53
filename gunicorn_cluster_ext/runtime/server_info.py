"""Facts about a server: versions, addresses, application, settings. A file in its directory.

The arbiter writes it at the start and after each reload; the command line reads it. Functions of
the arbiter import what they need themselves, so that ``status`` starts quickly.
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
_GUNICORN_SETTINGS = (
    *("workers", "threads", "timeout", "graceful_timeout"),
    *("max_requests", "preload_app"),
)


class ServerInfo(NamedTuple):
    """The facts. ``started`` is the wall clock's time of the start, in seconds.

    ``settings`` are the settings of this pack that differ from their defaults, and related
    settings of gunicorn.
    """

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


def collect(arbiter: Any, settings: Settings) -> ServerInfo:
    """Return the facts about the arbiter's server now."""
    from gunicorn import __version__ as gunicorn_version

    cfg, defaults = arbiter.cfg, vars(type(settings)())
    changed = {
        f"cluster_{name}": _without_secret(value) if isinstance(value, str) else value
        for name, value in vars(settings).items()
        if value != defaults[name]
    }
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
        settings={name: getattr(cfg, name) for name in _GUNICORN_SETTINGS} | changed,
    )


def _without_secret(text: str) -> str:
    """Return a URL without its user, password and query."""
    return re.sub(r"//[^/]*@", "//", text.partition("?")[0]) if "://" in text else text


def write(directory: Path, info: ServerInfo) -> None:
    """Write the file atomically: readers find the old or the new one. Raise OSError."""
    written = directory / f"{SERVER_INFO_FILE}.new"
    written.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(written, flags, 0o600), "w") as file:
        give_away(file.fileno(), directory)
        json.dump(info._asdict(), file, default=str)
    written.replace(directory / SERVER_INFO_FILE)


def read(directory: Path) -> ServerInfo | None:
    """Return the facts, or None if they cannot be read (a full disk, another version)."""
    try:
        return ServerInfo(**json.loads((directory / SERVER_INFO_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
