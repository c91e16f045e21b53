"""``gunicorn-cluster``: look at a running server through its board."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from gunicorn_cluster_ext import __version__, settings
from gunicorn_cluster_ext.board import Board, directories


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gunicorn-cluster", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="the workers of a running server, as JSON")
    status.add_argument("--pid", type=int, help="the master's pid; needed if several servers run")
    status.add_argument("--dir", help="the server's cluster_dir, where that is set")
    commands.add_parser("settings", help="every cluster_* setting, as a Markdown table")
    options = parser.parse_args(arguments)
    if options.command == "settings":
        print(settings.table())
        return 0
    return _status(options.pid, options.dir)


def _status(pid: int | None, base: str | None) -> int:
    found = {master: path for master, path in directories(base) if pid in (None, master)}
    if len(found) != 1:
        several = f"{len(found)} servers found: {sorted(found)}; say --pid"
        print(f"gunicorn-cluster: {several if found else 'no server found'}", file=sys.stderr)
        return 1
    master, path = found.popitem()
    try:
        board = Board.attach(path / "board")
    except (OSError, ValueError) as error:
        print(f"gunicorn-cluster: server {master}: {error}", file=sys.stderr)
        return 1
    workers = [
        {"id": row.slot, "seat": row.seat, **row.words, "state": row.state.name.lower()}
        for row in board.rows()
    ]
    roll = {**board.roll._asdict(), "state": board.roll.state.name.lower()}
    print(json.dumps({"master": master, "roll": roll, "workers": workers}, indent=2))
    return 0
