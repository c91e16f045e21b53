"""``gunicorn-cluster roll``: replace every worker, and wait for the outcome."""

from __future__ import annotations

import argparse
import sys

from gunicorn_cluster_ext.cli.server import (
    INTERRUPTED,
    CommandError,
    Wait,
    add_server_options,
    add_timeout,
    ask,
    find_server,
    request,
)
from gunicorn_cluster_ext.cli.view.terminal import progress
from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.board.control import RequestKind
from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.runtime.discovery import Server

_PRELOAD = (
    "gunicorn-cluster: preload_app: the new workers run the code that the master has loaded. "
    "To load new code, restart the server."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument("--abort", action="store_true", help="abort the roll that is under way")
    add_timeout(parser, "how long to follow the roll; it continues afterwards")


def run(options: argparse.Namespace) -> int:
    server = find_server(options)
    if options.abort:
        print(f"Roll {request(server, RequestKind.ABORT_ROLL).result} aborted")
        return 0
    wait = Wait(server, options.timeout)
    info = server_info.read(server.directory)
    if info is not None and info.settings.get("preload_app"):
        print(_PRELOAD, file=sys.stderr)
    number = _start(server, options.timeout)
    try:
        _follow(server, number, wait)
    except KeyboardInterrupt:
        print(
            f"gunicorn-cluster: no longer following roll {number}, which continues "
            "(roll --abort ends it)",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _start(server: Server, timeout: float | None) -> int:
    """Return the number of the new roll. The server reads its configuration before it replies."""
    reply = ask(server, RequestKind.ROLL, timeout=timeout)
    if reply.ok:
        return reply.result
    roll = server.board.roll
    raise CommandError(f"no roll: {roll.reason if roll.number == reply.result else reply.text}")


def _follow(server: Server, number: int, wait: Wait) -> None:
    with progress(f"roll {number}") as show:
        while True:
            roll = server.board.roll
            if roll.number > number:
                raise CommandError(f"roll {roll.number} took the place of roll {number}")
            if roll.state is RollState.COMMITTED:
                break
            replaced = f"{roll.replaced} of {roll.total}"
            if roll.state is RollState.FAILED:
                kept = f"; {replaced} workers were replaced" if roll.replaced else ""
                raise CommandError(f"roll {number} failed: {roll.reason}{kept}")
            doing = "observing" if roll.state is RollState.OBSERVING else "replacing"
            show(roll.replaced, roll.total, doing)
            wait.pause(f"roll {number} has not finished, {replaced} replaced")
    print(f"Replaced {roll.replaced} workers in {wait.elapsed:.1f} s (roll {number})")
