"""The running server that a command is about."""

from __future__ import annotations

import argparse
from pathlib import Path

from gunicorn_cluster_ext.runtime import discovery as servers
from gunicorn_cluster_ext.runtime.discovery import Server

#: Exit statuses; 2 is argparse's own, for a command line that cannot be understood.
FAILED = 1
NO_SERVER = 3
INTERRUPTED = 130


class CommandError(Exception):
    """What a command cannot do. The message says why, and what to do; ``status`` is its exit's."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say which server is meant."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--pid", type=int, help="the master's pid; needed if several servers run")
    choice.add_argument("--pidfile", type=Path, help="the file with it (gunicorn's --pid)")
    parser.add_argument("--dir", help="the server's cluster_dir, where that is set")


def choose(options: argparse.Namespace) -> Server:
    """The server that ``options`` of ``add_choice`` mean. Raises CommandError."""
    try:
        return servers.find(options.pid, options.pidfile, options.dir)
    except servers.NoServer as error:
        raise CommandError(str(error), NO_SERVER) from None
