"""What a server is: versions, addresses, application, settings. A file in its directory.

Written by the arbiter when it begins and after each reload; the command line reads it.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from pathlib import Path
from typing import Any

import gunicorn
import msgspec

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.board import give_away
from gunicorn_cluster_ext.settings import PREFIX, Settings

FILE = "server.json"


class Description(msgspec.Struct, frozen=True):
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


def of(arbiter: Any, settings: Settings) -> Description:
    """What the arbiter's configuration says now."""
    cfg = arbiter.cfg
    return Description(
        pack=__version__,
        gunicorn=gunicorn.__version__,
        python=platform.python_version(),
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
    changed = {}
    for name, value in dataclasses.asdict(settings).items():
        if value != getattr(Settings(), name):
            changed[PREFIX + name] = _without_secret(value) if isinstance(value, str) else value
    return changed


def _without_secret(text: str) -> str:
    """A URL less its user, password and query."""
    return re.sub(r"//[^/]*@", "//", text.partition("?")[0]) if "://" in text else text


def write(directory: Path, description: Description) -> None:
    """At once: who reads finds the old or the new. Raises OSError."""
    written = directory / f"{FILE}.new"
    written.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(written, flags, 0o600), "wb") as file:
        give_away(file.fileno(), directory)
        file.write(msgspec.json.encode(description))
    written.replace(directory / FILE)


def read(directory: Path) -> Description | None:
    """None if there is none that can be read: the directory was full, or is of another version."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=Description)
    except (OSError, msgspec.MsgspecError):
        return None
