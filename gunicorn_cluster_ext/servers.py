"""The running servers of this machine, as other processes find them: through their directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.board import Board, directories, is_alive


class NoServer(LookupError):
    """There is none that was meant, or there are several. The message says why."""


class Server(NamedTuple):
    """A server that runs: its master's pid, its private directory, its board."""

    pid: int
    directory: Path
    board: Board

    @property
    def is_there(self) -> bool:
        """Whether it still runs."""
        return (self.directory / "board").exists() and is_alive(self.pid)


def find(pid: int | None, pidfile: str | Path | None, base: str | None) -> Server:
    """The server with that master, with the one in that file, or the only one.

    ``base`` is its ``cluster_dir``. Raises NoServer.
    """
    if pidfile is not None:
        pid = _read_pid(Path(pidfile))
    found = {
        master: path
        for master, path in directories(base)
        if pid in (None, master) and is_alive(master)
    }
    if len(found) > 1:
        raise NoServer(f"{len(found)} servers run: {', '.join(map(str, sorted(found)))}; say which")
    if not found:
        raise NoServer("no server found" if pid is None else f"no server found with the pid {pid}")
    return _open(*found.popitem())


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise NoServer(f"no pid in the pid file {path}: {error}") from None


def _open(pid: int, directory: Path) -> Server:
    try:
        return Server(pid, directory, Board.attach(directory / "board"))
    except PermissionError:
        owner, me = directory.stat().st_uid, os.geteuid()
        raise NoServer(f"server {pid} is of user {owner}, and you are {me}") from None
    except (OSError, ValueError) as error:
        raise NoServer(f"server {pid}: {error}") from None
