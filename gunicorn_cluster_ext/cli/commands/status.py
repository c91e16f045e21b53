"""``gunicorn-cluster status``: show the workers of a running server."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gunicorn_cluster_ext.cli import snapshot
from gunicorn_cluster_ext.cli.server import add_server_options, find_server
from gunicorn_cluster_ext.cli.view import summary, terminal
from gunicorn_cluster_ext.cli.view.table import table
from gunicorn_cluster_ext.runtime import server_info


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="show what the workers are doing")
    add_server_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server = find_server(options)
    info, now = server_info.read(server.directory), snapshot.take(server)
    if options.json:
        terminal.print_json(snapshot.as_json(server, info, now))
        return 0
    lines = summary.lines(server.pid, info, now, time.time())
    terminal.show(lines, table(now.workers, terminal.width()))
    return 0
