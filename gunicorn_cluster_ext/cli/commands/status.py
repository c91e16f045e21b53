"""``gunicorn-cluster status``: show what the workers are doing."""

from __future__ import annotations

import argparse
import time

from gunicorn_cluster_ext.cli import snapshot
from gunicorn_cluster_ext.cli.server import add_server_options, find_server
from gunicorn_cluster_ext.cli.view import summary, terminal
from gunicorn_cluster_ext.cli.view.table import table
from gunicorn_cluster_ext.runtime import server_info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(options: argparse.Namespace) -> int:
    server = find_server(options)
    info, now = server_info.read(server.directory), snapshot.take(server)
    if options.json:
        terminal.print_json(snapshot.as_json(server, info, now))
        return 0
    lines = summary.lines(server.pid, info, now, time.time())
    terminal.show(lines, table(now.workers, terminal.width()))
    return 0
