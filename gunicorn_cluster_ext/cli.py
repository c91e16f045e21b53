"""``gunicorn-cluster``: see and steer a running server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.commands import (
    check,
    events,
    init,
    metrics,
    restart,
    roll,
    scale,
    settings,
    status,
    stop,
    systemd,
)
from gunicorn_cluster_ext.commands.server import FAILED, INTERRUPTED, CommandError

_COMMANDS = (status, roll, restart, scale, stop, events, metrics, check, init, systemd, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        exit_status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"gunicorn-cluster: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has enough, as head(1). Python would complain when it ends, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gunicorn-cluster", description="See and steer a running server."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
