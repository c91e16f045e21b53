"""``gunicorn-cluster stop``: end a server, its workers finish what is in progress."""

from __future__ import annotations

import argparse
import signal
import time
from typing import Any

from gunicorn_cluster_ext.cli.server import CommandError, add_choice, add_timeout, choose, send


def add(commands: Any) -> None:
    parser = commands.add_parser("stop", help="end the server; its workers finish (SIGTERM)")
    add_choice(parser)
    add_timeout(parser, "how long its end is waited for")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server, began = choose(options), time.monotonic()
    send(server, signal.SIGTERM)
    while server.is_running:
        passed = time.monotonic() - began
        if options.timeout is not None and passed >= options.timeout:
            raise CommandError(f"server {server.pid} still finishes after {options.timeout:g} s")
        time.sleep(0.05)
    print(f"Server {server.pid} has ended, after {time.monotonic() - began:.1f} s")
    return 0
