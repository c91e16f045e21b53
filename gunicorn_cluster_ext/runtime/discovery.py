"""The running servers of this machine, as other processes find them: through their directories."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.directory import directories
from gunicorn_cluster_ext.runtime.procfs import is_alive

_NONE = (
    "no server found (one that runs may have a cluster_dir, which is to be named here, or could "
    "write no directory, as its log says at its start: set cluster_dir to one that it can write)"
)
_NO_BOARD = (
    "no server found with the pid {} (it is no gunicorn with this pack, or could write no "
    "directory, as its log says at its start: set cluster_dir to one that it can write)"
)
_OTHER_USER = "server {} is of user {}, and you are {}: use sudo"


class ServerNotFound(LookupError):
    """There is none that was meant, or there are several. The message says why."""


class Server(NamedTuple):
    """A server that runs: its master's pid, its private directory, its board."""

    pid: int
    directory: Path
    board: Board

    @property
    def is_running(self) -> bool:
        """Whether it still runs: it removes its files when it ends, if it can."""
        return (self.directory / "board").exists() and is_alive(self.pid)


def find(pid: int | None, pidfile: str | Path | None, base: str | None) -> Server:
    """The server with that master, with the one in that file, or the only one.

    ``base`` is its ``cluster_dir``. Raises ServerNotFound.
    """
    if pidfile is not None:
        pid = _read_pid(Path(pidfile))
    return _only(base) if pid is None else _of_pid(pid, base)


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise ServerNotFound(f"no pid in the pid file {path}: {error}") from None


def _only(base: str | None) -> Server:
    """The only one that runs, of those that this user may look at."""
    found: dict[int, Path] = {}
    closed: list[tuple[int, Path]] = []
    dead: list[int] = []
    for pid, directory in directories(base):
        if not is_alive(pid) or _has_board(pid, directory) is False:
            dead.append(pid)
        elif os.access(directory, os.R_OK | os.X_OK):
            found[pid] = directory
        else:
            closed.append((pid, directory))
    if len(found) == 1:
        return _open(*found.popitem())
    if found:
        pids = ", ".join(map(str, sorted(found)))
        raise ServerNotFound(f"{len(found)} servers run: {pids}; say which")
    for pid, directory in closed:
        raise ServerNotFound(_OTHER_USER.format(pid, user(directory), _me()))
    if dead:
        raise ServerNotFound(f"no server found ({', '.join(map(str, dead))} has died)")
    raise ServerNotFound(_NONE)


def _of_pid(pid: int, base: str | None) -> Server:
    if not is_alive(pid):
        raise ServerNotFound(f"no server found with the pid {pid} (there is no such process)")
    for master, directory in directories(base):
        if master == pid and _has_board(pid, directory) is not False:
            return _open(pid, directory)
    # It may have been started in another environment than this.
    try:
        for _, path in _boards(pid):
            return _open(pid, path.parent)
    except OSError:
        owner = user(Path(f"/proc/{pid}"))
        if owner not in ("", _me()):
            raise ServerNotFound(_OTHER_USER.format(pid, owner, _me())) from None
    raise ServerNotFound(_NO_BOARD.format(pid))


def _open(pid: int, directory: Path) -> Server:
    try:
        board = Board.attach(directory / "board")
    except PermissionError:
        raise ServerNotFound(_OTHER_USER.format(pid, user(directory), _me())) from None
    except OSError as error:
        raise ServerNotFound(f"server {pid}: {error}") from None
    except ValueError as error:
        hint = "use the installation of this pack that it runs with"
        raise ServerNotFound(f"server {pid}: {error}: {hint}") from None
    return Server(board.master_pid, directory, board)


def _has_board(pid: int, directory: Path) -> bool | None:
    """Whether that process has the board that is there; None if it is not known.

    A pid is used again, and in a directory for everybody anybody can make one with this name.
    """
    try:
        inode = (directory / "board").stat().st_ino
        return any(found == inode for found, _ in _boards(pid))
    except OSError:
        return None


def _boards(pid: int) -> Iterator[tuple[int, Path]]:
    """The boards that a process has mapped, with their inodes: proc(5), maps. Raises OSError."""
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and "/gunicorn-cluster-" in fields[5]:
                path = Path(fields[5])
                if path.name == "board":
                    yield int(fields[4]), path


def user(path: Path) -> str:
    """To whom it belongs; "" if that is not known."""
    try:
        return _name(path.stat().st_uid)
    except OSError:
        return ""


def _me() -> str:
    return _name(os.geteuid())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
