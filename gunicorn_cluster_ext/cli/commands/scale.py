"""``gunicorn-cluster scale``: more workers, or fewer."""

from __future__ import annotations

import argparse
import re
from typing import Any

from gunicorn_cluster_ext.cli.server import (
    Failures,
    Wait,
    add_choice,
    add_timeout,
    choose,
    request,
)
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.control import RequestKind
from gunicorn_cluster_ext.runtime.board.layout import State


def add(commands: Any) -> None:
    parser = commands.add_parser("scale", help="more workers, or fewer, until the next reload")
    parser.add_argument("workers", type=_count, help="how many, or +1 or -1")
    add_choice(parser)
    add_timeout(parser, "how long they are waited for; the server goes on")
    parser.set_defaults(run=run)


def _count(text: str) -> tuple[RequestKind, int]:
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers nor +1 nor -1")
    return (RequestKind.SCALE_BY if text[0] in "+-" else RequestKind.SCALE), int(text)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    kind, number = options.workers
    board, wait = server.board, Wait(server, options.timeout)
    failures = Failures(board, set(range(board.capacity)) - set(_serving(board)))
    reply = request(server, kind, number)
    wanted = reply.result
    while _serving(board) != list(range(wanted)):
        failures.check()
        wait.pause(f"{len(_serving(board))} workers serve instead of {wanted}")
    print(f"{reply.text}, after {wait.passed:.1f} s")
    return 0


def _serving(board: Board) -> list[int]:
    return sorted({row.slot for row in board.rows() if row.state is State.READY})
