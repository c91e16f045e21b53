"""``gunicorn-cluster stop``: stop the server after the requests in progress (SIGTERM)."""

from __future__ import annotations

import argparse
import signal
import time

from gunicorn_cluster_ext.cli.server import (
    POLL_INTERVAL_S,
    CommandError,
    add_server_options,
    add_timeout,
    find_server,
    send_signal,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    add_timeout(parser, "how long to wait for its end")


def run(options: argparse.Namespace) -> int:
    server, started = find_server(options), time.monotonic()
    send_signal(server, signal.SIGTERM)
    while server.is_running:
        if options.timeout is not None and time.monotonic() - started >= options.timeout:
            raise CommandError(f"server {server.pid} has not ended after {options.timeout:g} s")
        time.sleep(POLL_INTERVAL_S)
    print(f"Server {server.pid} has ended, after {time.monotonic() - started:.1f} s")
    return 0
