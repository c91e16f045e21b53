"""``gunicorn-cluster roll``: replace all workers, and say what became of it. For deploy scripts."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gunicorn_cluster_ext.cli.server import (
    INTERRUPTED,
    CommandError,
    Wait,
    add_choice,
    add_timeout,
    ask,
    choose,
    request,
)
from gunicorn_cluster_ext.cli.view.terminal import Progress
from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.board.control import RequestKind
from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from gunicorn_cluster_ext.runtime.discovery import Server

_PRELOAD = (
    "gunicorn-cluster: preload_app: the new workers have the code that the master has loaded. "
    "To load new code, restart the server."
)


def add(commands: Any) -> None:
    parser = commands.add_parser("roll", help="replace every worker, and follow it to its end")
    add_choice(parser)
    parser.add_argument("--abort", action="store_true", help="give up the roll that is under way")
    add_timeout(parser, "how long it is followed; the roll goes on")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    if options.abort:
        return _abort(server)
    wait = Wait(server, options.timeout)
    about = server_info.read(server.directory)
    if about is not None and about.settings.get("preload_app"):
        print(_PRELOAD, file=sys.stderr)
    number = _begin(server, options.timeout)
    try:
        return _follow(server, number, wait)
    except KeyboardInterrupt:
        hint = "it goes on (roll --abort ends it)"
        print(f"gunicorn-cluster: roll {number} is not followed any more; {hint}", file=sys.stderr)
        return INTERRUPTED


def _begin(server: Server, timeout: float | None) -> int:
    """The number of the roll. Snapshot the configuration may take some time."""
    reply = ask(server, RequestKind.ROLL, timeout=timeout)
    if reply.ok:
        return reply.result
    roll = server.board.roll
    reason = roll.reason if roll.number == reply.result else reply.text
    raise CommandError(f"no roll: {reason}")


def _follow(server: Server, number: int, wait: Wait) -> int:
    with Progress(f"roll {number}") as progress:
        while True:
            roll = server.board.roll
            if roll.number > number:
                raise CommandError(f"another roll ({roll.number}) took the place of roll {number}")
            if roll.state is RollState.COMMITTED:
                break
            if roll.state is RollState.FAILED:
                raise CommandError(f"roll {number} failed: {roll.reason}{_kept(roll)}")
            progress.show(roll.replaced, roll.total, _doing(roll))
            wait.pause(f"roll {number} is not over, {roll.replaced} of {roll.total} replaced")
    print(f"Replaced {roll.replaced} workers in {wait.passed:.1f} s (roll {number})")
    return 0


def _doing(roll: Roll) -> str:
    return "observing" if roll.state is RollState.OBSERVING else "replacing"


def _kept(roll: Roll) -> str:
    return f"; {roll.replaced} of {roll.total} workers were replaced" if roll.replaced else ""


def _abort(server: Server) -> int:
    print(f"Roll {request(server, RequestKind.ABORT_ROLL).result} aborted")
    return 0
