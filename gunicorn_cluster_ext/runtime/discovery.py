"""Find the running servers of this machine through their private directories."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.directory import directories
from gunicorn_cluster_ext.runtime.procfs import is_alive

_NO_SERVER = (
    "no server found (to find a server with a cluster_dir, give that directory; a server that "
    "could not write any directory says so in its log at the start: set cluster_dir to one that it "
    "can write)"
)
_NO_BOARD = (
    "no server found with the pid {} (it is not a gunicorn with this pack, or it could not write "
    "any directory, as its log says at the start: set cluster_dir to one that it can write)"
)
_OTHER_USER = "server {} belongs to user {}, and you are {}: use sudo"


class ServerNotFound(LookupError):
    """No server matches, or several do. The message says why."""


class Server(NamedTuple):
    """A running server: its master's pid, its private directory, its board."""

    pid: int
    directory: Path
    board: Board

    @property
    def is_running(self) -> bool:
        """True while it runs. A server removes its files when it ends, if it can."""
        return (self.directory / "board").exists() and is_alive(self.pid)


def find(pid: int | None, pidfile: str | Path | None, base: str | None) -> Server:
    """Return the server of the process ``pid`` or of the pid in ``pidfile``, or the only server.

    The process may be the master or any worker. ``base`` is the server's ``cluster_dir``. Raise
    ServerNotFound.
    """
    if pidfile is not None:
        try:
            pid = int(Path(pidfile).read_text())
        except (OSError, ValueError) as error:
            raise ServerNotFound(f"no pid in the pid file {pidfile}: {error}") from None
    return _only_server(base) if pid is None else _server_of(pid, base)


def _only_server(base: str | None) -> Server:
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
        raise ServerNotFound(_OTHER_USER.format(pid, owner_name(directory), _my_name()))
    if dead:
        raise ServerNotFound(f"no server found ({', '.join(map(str, dead))} has died)")
    raise ServerNotFound(_NO_SERVER)


def _server_of(pid: int, base: str | None) -> Server:
    if not is_alive(pid):
        raise ServerNotFound(f"no server found with the pid {pid} (there is no such process)")
    for master, directory in directories(base):
        if master == pid and _has_board(pid, directory) is not False:
            return _open(pid, directory)
    # The server may have been started in another environment, and so have its files elsewhere.
    try:
        for _, path in _mapped_boards(pid):
            return _open(pid, path.parent)
    except OSError:
        owner = owner_name(Path(f"/proc/{pid}"))
        if owner not in ("", _my_name()):
            raise ServerNotFound(_OTHER_USER.format(pid, owner, _my_name())) from None
    raise ServerNotFound(_NO_BOARD.format(pid))


def _open(pid: int, directory: Path) -> Server:
    try:
        board = Board.attach(directory / "board")
    except PermissionError:
        owner = owner_name(directory)
        raise ServerNotFound(_OTHER_USER.format(pid, owner, _my_name())) from None
    except OSError as error:
        raise ServerNotFound(f"server {pid}: {error}") from None
    except ValueError as error:
        hint = "use the installation of this pack that the server runs with"
        raise ServerNotFound(f"server {pid}: {error}: {hint}") from None
    return Server(board.master_pid, directory, board)


def _has_board(pid: int, directory: Path) -> bool | None:
    """Return whether that process has mapped the board of ``directory``; None if unknown.

    The pid of a dead server may be reused, and in a directory like /tmp any user can make a
    directory with this name.
    """
    try:
        inode = (directory / "board").stat().st_ino
        return any(found == inode for found, _ in _mapped_boards(pid))
    except OSError:
        return None


def _mapped_boards(pid: int) -> Iterator[tuple[int, Path]]:
    """Yield inode and path of the boards that a process has mapped (proc(5), maps).

    Raise OSError.
    """
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and "/gunicorn-cluster-" in fields[5]:
                path = Path(fields[5])
                if path.name == "board":
                    yield int(fields[4]), path


def owner_name(path: Path) -> str:
    """Return the name of the user that owns ``path``, or "" if it is unknown."""
    try:
        return _user_name(path.stat().st_uid)
    except OSError:
        return ""


def _my_name() -> str:
    return _user_name(os.geteuid())


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
