"""``gunicorn-cluster status``: what the workers of a running server do."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gunicorn_cluster_ext.cli.server import add_choice, choose
from gunicorn_cluster_ext.cli.snapshot import as_json, read
from gunicorn_cluster_ext.cli.view import summary, terminal
from gunicorn_cluster_ext.cli.view.table import table
from gunicorn_cluster_ext.runtime import server_info


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="what the workers of a running server do")
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="all there is to know, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    about, snapshot = server_info.read(server.directory), read(server)
    if options.json:
        terminal.print_json(as_json(server, about, snapshot))
        return 0
    lines = summary.lines(server.pid, about, snapshot, time.time())
    terminal.show(lines, table(snapshot.workers, terminal.width()))
    return 0
