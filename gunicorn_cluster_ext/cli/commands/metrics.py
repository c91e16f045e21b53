"""``gunicorn-cluster metrics``: print the server's metrics in Prometheus' text format."""

from __future__ import annotations

import argparse
from pathlib import Path

from gunicorn_cluster_ext.cli.server import CommandError, add_server_options, find_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="replace this file atomically, for the textfile collector of node_exporter",
    )


def run(options: argparse.Namespace) -> int:
    try:
        from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
    except ImportError:
        raise CommandError(
            "prometheus_client is not installed: pip install 'gunicorn-cluster-ext[metrics]'"
        ) from None
    from gunicorn_cluster_ext.metrics import BoardCollector

    registry = CollectorRegistry()
    registry.register(BoardCollector(find_server(options).board))
    if options.output is None:
        print(generate_latest(registry).decode(), end="")
        return 0
    try:
        write_to_textfile(str(options.output), registry)
    except OSError as error:
        raise CommandError(f"cannot write {options.output}: {error.strerror}") from None
    return 0
