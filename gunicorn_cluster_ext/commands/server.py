"""The running server that a command is about: found, and its board opened to be read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.board import Board, directories, is_alive

#: Exit statuses; 2 is argparse's own, for a command line that cannot be understood.
FAILED = 1
NO_SERVER = 3


class CommandError(Exception):
    """What a command cannot do. The message says why, and what to do; ``status`` is its exit's."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Server(NamedTuple):
    """A server that runs: its master's pid, its private directory, its board."""

    pid: int
    directory: Path
    board: Board


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say which server is meant."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--pid", type=int, help="the master's pid; needed if several servers run")
    choice.add_argument("--pidfile", type=Path, help="the file with it (gunicorn's --pid)")
    parser.add_argument("--dir", help="the server's cluster_dir, where that is set")


def choose(options: argparse.Namespace) -> Server:
    """The server that ``options`` of ``add_choice`` mean. Raises CommandError."""
    pid = options.pid if options.pidfile is None else _read_pid(options.pidfile)
    found = {
        master: path
        for master, path in directories(options.dir)
        if pid in (None, master) and is_alive(master)
    }
    if len(found) > 1:
        pids = ", ".join(str(each) for each in sorted(found))
        raise CommandError(f"{len(found)} servers run: {pids}; say --pid", NO_SERVER)
    if not found:
        raise CommandError("no server found", NO_SERVER)
    return _open(*found.popitem())


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"no pid in the pid file {path}: {error}", NO_SERVER) from None


def _open(pid: int, directory: Path) -> Server:
    try:
        return Server(pid, directory, Board.attach(directory / "board"))
    except PermissionError:
        owner = directory.stat().st_uid
        me = os.geteuid()
        raise CommandError(
            f"server {pid} is of user {owner}, and you are {me}", NO_SERVER
        ) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"server {pid}: {error}", NO_SERVER) from None
