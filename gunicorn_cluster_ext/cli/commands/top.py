"""``gunicorn-cluster top``: show what the workers are doing, live."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn_cluster_ext.cli import snapshot
from gunicorn_cluster_ext.cli.server import CommandError, add_server_options, find_server
from gunicorn_cluster_ext.cli.snapshot import Worker
from gunicorn_cluster_ext.cli.view import summary, terminal
from gunicorn_cluster_ext.cli.view.history import BLOCKS, PLAIN_BLOCKS, History
from gunicorn_cluster_ext.cli.view.table import COLUMNS, Column, TextTable, table
from gunicorn_cluster_ext.cli.view.terminal import QUIT, keyboard
from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.discovery import Server

#: By key: the name of the order, and the number to sort by.
_ORDERS: dict[str, tuple[str, Callable[[Worker], float]]] = {
    "i": ("id", lambda worker: worker.slot),
    "r": ("rate", lambda worker: -worker.rate),
    "b": ("busy", lambda worker: -worker.words.get("busy", 0)),
    "c": ("cpu", lambda worker: -(worker.load or 0.0)),
    "m": ("memory", lambda worker: -(worker.memory or 0)),
    "n": ("restarts", lambda worker: -worker.exits.total),
}
_MIN_INTERVAL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="the time between updates; default: 1",
    )


def run(options: argparse.Namespace) -> int:
    view = _Top(find_server(options))
    # Any end of this process restores the terminal.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = terminal.console() if sys.stdin.isatty() else None
    interval = max(options.interval, _MIN_INTERVAL_S)
    try:
        if console is None:
            _print_forever(view, interval)
        else:
            _show_until_quit(view, interval, console)
    except KeyboardInterrupt:
        pass
    return 0


class _Top:
    """The view of a server: its history, and the order of the workers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._history = History()
        self._blocks = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else PLAIN_BLOCKS
        history = Column("HISTORY", 4, self._sparkline, is_text=True)
        self._columns = [*COLUMNS[:8], history, *COLUMNS[8:]]
        self._order = "i"

    def _sparkline(self, worker: Worker) -> str:
        return self._history.line(worker, self._blocks)

    def press(self, keys: str) -> bool:
        """Apply the keys, and return whether ``top`` continues after them."""
        for key in keys:
            self._order = key if key in _ORDERS else self._order
        return QUIT not in keys

    def update(self, width: int | None) -> tuple[list[str], TextTable]:
        """Return the summary and the table of now. Raise CommandError if the server has ended."""
        server = self._server
        if not server.is_running:
            raise CommandError(f"server {server.pid} has ended")
        now = snapshot.take(server)
        workers = sorted(self._history.add(now), key=_ORDERS[self._order][1])
        info = server_info.read(server.directory)
        lines = summary.lines(server.pid, info, now, time.time())
        return lines, table(workers, width, self._columns)

    def keys(self) -> str:
        """Return the line that explains the keys."""
        names = ", ".join(f"{key} {name}" for key, (name, _) in _ORDERS.items())
        return f"sorted by {_ORDERS[self._order][0]}; {names}, {QUIT} quit"


def _print_forever(view: _Top, interval: float) -> None:
    """Print one table after another, without a terminal or without rich."""
    while True:
        lines, rows = view.update(terminal.width())
        print("\n".join([*lines, "", *rows.lines(), ""]), flush=True)
        time.sleep(interval)


def _show_until_quit(view: _Top, interval: float, console: Any) -> None:
    from rich.live import Live

    continues = True
    with keyboard() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        while continues:
            lines, rows = view.update(console.size.width)
            live.update(terminal.page([*lines, view.keys()], rows), refresh=True)
            continues = view.press(wait(interval))
