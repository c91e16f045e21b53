"""``gunicorn-cluster metrics``: a running server's metrics as Prometheus reads them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.cli.server import CommandError, add_choice, choose


def add(commands: Any) -> None:
    parser = commands.add_parser("metrics", help="the server's metrics, as Prometheus reads them")
    add_choice(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="replace this file at once: for the textfile collector of node_exporter",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
    except ImportError:
        needed = "pip install 'gunicorn-cluster-ext[metrics]'"
        raise CommandError(f"prometheus_client is not installed: {needed}") from None
    from gunicorn_cluster_ext.metrics import BoardCollector

    registry = CollectorRegistry()
    registry.register(BoardCollector(choose(options).board))
    if options.output is None:
        print(generate_latest(registry).decode(), end="")
        return 0
    try:
        write_to_textfile(str(options.output), registry)
    except OSError as error:
        raise CommandError(f"cannot write {options.output}: {error.strerror}") from None
    return 0
