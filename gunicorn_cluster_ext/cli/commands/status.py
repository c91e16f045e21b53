"""``gunicorn-cluster status``: what the workers of a running server do."""

from __future__ import annotations

import argparse
import time
from typing import Any

from gunicorn_cluster_ext.cli.server import add_choice, choose
from gunicorn_cluster_ext.cli.snapshot import as_json, read
from gunicorn_cluster_ext.cli.view import summary as head
from gunicorn_cluster_ext.cli.view import terminal as screen
from gunicorn_cluster_ext.cli.view.table import table
from gunicorn_cluster_ext.runtime import server_info as description


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="what the workers of a running server do")
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="all there is to know, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    about, reading = description.read(server.directory), read(server)
    if options.json:
        screen.print_json(as_json(server, about, reading))
        return 0
    lines = head.lines(server.pid, about, reading, time.time())
    screen.show(lines, table(reading.workers, screen.width()))
    return 0
