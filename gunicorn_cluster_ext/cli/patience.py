"""How long a command follows what a server does."""

from __future__ import annotations

import argparse
import time

from gunicorn_cluster_ext.cli.server import CommandError
from gunicorn_cluster_ext.runtime.discovery import Server

#: Seconds between two looks at the board.
_PAUSE = 0.05


class Patience:
    """Made when the waiting begins. ``seconds``: None is as long as the server runs."""

    def __init__(self, server: Server, seconds: float | None) -> None:
        self._server = server
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    def wait(self, what: str) -> None:
        """Wait a little. Raises CommandError, with ``what``, when that is no use any more."""
        if not self._server.is_there or self._server.board.stopping:
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
