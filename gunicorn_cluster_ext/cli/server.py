"""The running server that a command is about: find it, ask it, wait for it."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

from gunicorn_cluster_ext.runtime import discovery
from gunicorn_cluster_ext.runtime.board import control, exits
from gunicorn_cluster_ext.runtime.board.control import NoReply, Reply, RequestKind
from gunicorn_cluster_ext.runtime.discovery import Server, owner_name

#: Exit statuses. argparse uses 2, for a command line that it does not understand.
FAILED = 1
NO_SERVER = 3
INTERRUPTED = 130

#: The arbiter reads the board once a second or more often.
REPLY_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.05


class CommandError(Exception):
    """A command cannot do what it was asked to. The message says why, and what to do about it.

    ``status`` is the exit status.
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a server."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--pid", type=int, help="the pid of the master; required if several servers run"
    )
    choice.add_argument(
        "--pidfile", type=Path, help="the file that contains this pid (gunicorn's --pid)"
    )
    parser.add_argument("--dir", help="the cluster_dir of the server, if it is set")


def find_server(options: argparse.Namespace) -> Server:
    """Return the server that the options choose. Raise CommandError."""
    try:
        return discovery.find(options.pid, options.pidfile, options.dir)
    except discovery.ServerNotFound as error:
        raise CommandError(str(error), NO_SERVER) from None


def request(server: Server, kind: RequestKind, argument: int = 0) -> Reply:
    """Return the reply to a control request. Raise CommandError, also if the server refuses."""
    reply = ask(server, kind, argument, timeout=REPLY_TIMEOUT_S)
    if not reply.ok:
        raise CommandError(reply.text)
    return reply


def ask(server: Server, kind: RequestKind, argument: int = 0, *, timeout: float | None) -> Reply:
    """Return the reply, which may be a refusal. Raise CommandError without one in ``timeout`` s."""
    try:
        return control.ask(server.directory / "board", kind, argument, timeout)
    except NoReply as error:
        raise CommandError(f"server {server.pid}: {error}") from None
    except OSError as error:
        raise CommandError(f"server {server.pid}: its board cannot be written: {error}") from None


def send_signal(server: Server, signal: int) -> None:
    """Send a signal to the master. Raise CommandError."""
    try:
        os.kill(server.pid, signal)
    except ProcessLookupError:
        raise CommandError(f"server {server.pid} has ended", NO_SERVER) from None
    except PermissionError:
        owner = owner_name(Path(f"/proc/{server.pid}")) or "its own user"
        raise CommandError(
            f"server {server.pid} accepts signals only from {owner}: use sudo"
        ) from None


def add_timeout(parser: argparse.ArgumentParser, description: str) -> None:
    """Add the option ``--timeout``."""
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=description)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError("it is not a time in seconds")
    return seconds


class Wait:
    """A wait that starts now, for something that the server does.

    ``seconds`` limits it; None waits as long as the server runs. It also ends when a worker in
    one of ``slots`` exits unexpectedly from now on.
    """

    def __init__(self, server: Server, seconds: float | None, slots: Iterable[int] = ()) -> None:
        self._server = server
        self._seconds = seconds
        self._started = time.monotonic()
        self._exits = {slot: exits.of_slot(server.board, slot).unexpected for slot in slots}

    @property
    def elapsed(self) -> float:
        """The seconds since the wait began."""
        return time.monotonic() - self._started

    def pause(self, missing: str) -> None:
        """Sleep for a moment. Raise CommandError, which says what is ``missing``, at the end."""
        for slot, before in self._exits.items():
            now = exits.of_slot(self._server.board, slot)
            if now.unexpected > before:
                raise CommandError(f"worker {slot} {now.reason}; the server will try again")
        if not self._server.is_running or self._server.board.stopping:
            raise CommandError(f"server {self._server.pid} has ended: {missing}")
        if self._seconds is not None and self.elapsed >= self._seconds:
            raise CommandError(f"{missing}, after {self._seconds:g} s")
        time.sleep(POLL_INTERVAL_S)
