"""``gunicorn-cluster scale``: more workers, or fewer."""

from __future__ import annotations

import argparse
import re
from typing import Any

from gunicorn_cluster_ext.cli.failures import Failures
from gunicorn_cluster_ext.cli.patience import Patience, add_timeout
from gunicorn_cluster_ext.cli.server import add_choice, choose
from gunicorn_cluster_ext.cli.wish import wish
from gunicorn_cluster_ext.runtime.board.board import Board, State
from gunicorn_cluster_ext.runtime.board.control import Kind


def add(commands: Any) -> None:
    parser = commands.add_parser("scale", help="more workers, or fewer, until the next reload")
    parser.add_argument("workers", type=_count, help="how many, or +1 or -1")
    add_choice(parser)
    add_timeout(parser, "how long they are waited for; the server goes on")
    parser.set_defaults(run=run)


def _count(text: str) -> tuple[Kind, int]:
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers nor +1 nor -1")
    return (Kind.SCALE_BY if text[0] in "+-" else Kind.SCALE), int(text)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    kind, number = options.workers
    board, patience = server.board, Patience(server, options.timeout)
    failures = Failures(board, set(range(board.capacity)) - set(_serving(board)))
    answer = wish(server, kind, number)
    wanted = answer.result
    while _serving(board) != list(range(wanted)):
        failures.check()
        patience.wait(f"{len(_serving(board))} workers serve instead of {wanted}")
    print(f"{answer.text}, after {patience.passed:.1f} s")
    return 0


def _serving(board: Board) -> list[int]:
    return sorted({row.slot for row in board.rows() if row.state is State.READY})
