"""``gunicorn-cluster status``: what the workers of a running server do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gunicorn_cluster_ext.commands.server import add_choice, choose
from gunicorn_cluster_ext.servers import Server


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="the workers of a running server")
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    print(json.dumps(_described(choose(options)), indent=2))
    return 0


def _described(server: Server) -> dict[str, Any]:
    board = server.board
    workers = [
        {"id": row.slot, "seat": row.seat, **row.words, "state": row.state.name.lower()}
        for row in board.rows()
    ]
    roll = {**board.roll._asdict(), "state": board.roll.state.name.lower()}
    return {"master": server.pid, "roll": roll, "workers": workers}
