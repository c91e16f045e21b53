"""``gunicorn-cluster top``: the workers of a running server, live."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn_cluster_ext.cli.server import CommandError, add_choice, choose
from gunicorn_cluster_ext.cli.snapshot import Snapshot, Worker, read
from gunicorn_cluster_ext.cli.view import summary, terminal
from gunicorn_cluster_ext.cli.view.history import BLOCKS, PLAIN_BLOCKS, History
from gunicorn_cluster_ext.cli.view.table import COLUMNS, Column, TextTable, table
from gunicorn_cluster_ext.cli.view.terminal import QUIT, Keyboard
from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.discovery import Server

#: By the key that sorts so: what it is called, and a number to sort by.
_ORDERS: dict[str, tuple[str, Callable[[Worker], float]]] = {
    "i": ("id", lambda worker: worker.slot),
    "r": ("rate", lambda worker: -worker.rate),
    "b": ("busy", lambda worker: -worker.words.get("busy", 0)),
    "c": ("cpu", lambda worker: -(worker.load or 0.0)),
    "m": ("memory", lambda worker: -(worker.memory or 0)),
    "n": ("restarts", lambda worker: -worker.exits.total),
}


def add(commands: Any) -> None:
    parser = commands.add_parser("top", help="what the workers do, live")
    add_choice(parser)
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (1)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    shown = _Top(choose(options))
    # So that the terminal is as it was, whoever ends this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = terminal.console() if sys.stdin.isatty() else None
    interval = max(options.interval, 0.1)
    try:
        if console is None:
            _print(shown, interval)
        else:
            _show(shown, interval, console)
    except KeyboardInterrupt:
        pass
    return 0


class _Top:
    """What is shown of a server, and how it is sorted."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._history = History()
        self._blocks = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else PLAIN_BLOCKS
        self._columns = [*COLUMNS[:8], Column("HISTORY", 4, self._line, True), *COLUMNS[8:]]
        self._order = "i"

    def _line(self, worker: Worker) -> str:
        return self._history.line(worker, self._blocks)

    def press(self, keys: str) -> bool:
        """Whether it goes on after these keys."""
        for key in keys:
            self._order = key if key in _ORDERS else self._order
        return QUIT not in keys

    def look(self, width: int | None) -> tuple[list[str], TextTable]:
        """Raises CommandError when the server has ended."""
        server = self._server
        if not server.is_running:
            raise CommandError(f"server {server.pid} has ended")
        snapshot = read(server)
        workers = sorted(self._history.add(snapshot), key=_ORDERS[self._order][1])
        return self._head(snapshot), table(workers, width, self._columns)

    def _head(self, snapshot: Snapshot) -> list[str]:
        about = server_info.read(self._server.directory)
        return summary.lines(self._server.pid, about, snapshot, time.time())

    def keys(self) -> str:
        """What can be pressed."""
        names = ", ".join(f"{key} {name}" for key, (name, _) in _ORDERS.items())
        return f"sorted by {_ORDERS[self._order][0]}; {names}, {QUIT} quit"


def _print(shown: _Top, interval: float) -> None:
    """Without a terminal that can show it, one table after the other."""
    while True:
        lines, rows = shown.look(terminal.width())
        print("\n".join([*lines, "", *rows.lines(), ""]), flush=True)
        time.sleep(interval)


def _show(shown: _Top, interval: float, console: Any) -> None:
    from rich.live import Live

    goes_on = True
    with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while goes_on:
            lines, rows = shown.look(console.size.width)
            live.update(terminal.page([*lines, shown.keys()], rows), refresh=True)
            goes_on = shown.press(keyboard.wait(interval))
