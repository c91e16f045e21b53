"""``gunicorn-cluster``: look at a running server, and control it.

Only the module of the given command is imported, and what ``status`` needs imports neither
dataclasses, msgspec nor tempfile: these took three quarters of its time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.cli.server import FAILED, INTERRUPTED, CommandError

#: Each is a module of ``commands``.
_COMMANDS = (
    "status",
    "top",
    "roll",
    "restart",
    "scale",
    "stop",
    "events",
    "metrics",
    "check",
    "init",
    "systemd",
    "settings",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(given[0] if given else "").parse_args(given)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"gunicorn-cluster: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough, as head(1) has. Without this Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


def _parser(first: str) -> argparse.ArgumentParser:
    """Return a parser for the command ``first``, or for all if no command has that name.

    Importing all commands takes three times as long as ``status`` does.
    """
    prog = "gunicorn-cluster"
    description = "Look at a running server, and control it."
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(prog=prog, metavar="COMMAND", required=True)
    for name in [first] if first in _COMMANDS else _COMMANDS:
        module = import_module(f"gunicorn_cluster_ext.cli.commands.{name}")
        summary = (module.__doc__ or "").partition(": ")[2].partition(".")[0]
        parser_options = getattr(module, "PARSER_OPTIONS", {})
        sentence = f"{summary[:1].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=sentence, **parser_options)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
