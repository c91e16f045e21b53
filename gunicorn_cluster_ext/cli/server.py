"""The running server that a command is about."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

from gunicorn_cluster_ext.runtime import discovery
from gunicorn_cluster_ext.runtime.board import control, exits
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.control import NoReply, Reply, RequestKind
from gunicorn_cluster_ext.runtime.discovery import Server, user

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
        return discovery.find(options.pid, options.pidfile, options.dir)
    except discovery.ServerNotFound as error:
        raise CommandError(str(error), NO_SERVER) from None


#: Seconds; an arbiter looks once a second at least.
REPLY_TIMEOUT_S = 10.0


def request(server: Server, kind: RequestKind, of: int = 0) -> Reply:
    """What it answers. Raises CommandError, also when it refuses."""
    reply = ask(server, kind, of, timeout=REPLY_TIMEOUT_S)
    if not reply.ok:
        raise CommandError(reply.text)
    return reply


def ask(server: Server, kind: RequestKind, of: int = 0, *, timeout: float | None) -> Reply:
    """What it answers within ``timeout`` seconds. Raises CommandError."""
    try:
        return control.ask(server.directory / "board", kind, of, timeout)
    except NoReply as error:
        raise CommandError(f"server {server.pid}: {error}") from None
    except OSError as error:
        raise CommandError(f"server {server.pid}: its board cannot be written: {error}") from None


def send(server: Server, signal: int) -> None:
    """Raises CommandError."""
    try:
        os.kill(server.pid, signal)
    except ProcessLookupError:
        raise CommandError(f"server {server.pid} has ended", NO_SERVER) from None
    except PermissionError:
        owner = user(Path(f"/proc/{server.pid}")) or "its own user"
        raise CommandError(f"server {server.pid} takes signals of {owner} only: use sudo") from None


#: Seconds between two looks at the board.
_PAUSE = 0.05


class Wait:
    """Made when the waiting begins. ``seconds``: None is as long as the server runs."""

    def __init__(self, server: Server, seconds: float | None) -> None:
        self._server = server
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    def pause(self, what: str) -> None:
        """Wait a little. Raises CommandError, with ``what``, when that is no use any more."""
        if not self._server.is_running or self._server.board.stopping:
            raise CommandError(f"server {self._server.pid} has ended: {what}")
        if self.seconds is not None and self.passed >= self.seconds:
            raise CommandError(f"{what}, after {self.seconds:g} s")
        time.sleep(_PAUSE)


def add_timeout(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=what)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError("it is no time in seconds")
    return seconds


class Failures:
    """Those in ``slots``, from now on."""

    def __init__(self, board: Board, slots: Iterable[int]) -> None:
        self._board = board
        self._before = {slot: exits.of_slot(board, slot).unexpected for slot in slots}

    def check(self) -> None:
        """Raises CommandError, which says why, when there was one."""
        for slot, before in self._before.items():
            now = exits.of_slot(self._board, slot)
            if now.unexpected > before:
                raise CommandError(f"worker {slot} {now.reason}; the server will try again")
