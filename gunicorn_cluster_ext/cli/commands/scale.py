"""``gunicorn-cluster scale``: change the number of workers, until the next reload."""

from __future__ import annotations

import argparse
import re

from gunicorn_cluster_ext.cli.server import (
    Wait,
    add_server_options,
    add_timeout,
    find_server,
    request,
)
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.control import RequestKind
from gunicorn_cluster_ext.runtime.board.layout import State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", type=_count, help="the new number, or a change: +1, -1")
    add_server_options(parser)
    add_timeout(parser, "how long to wait for the workers")


def _count(text: str) -> tuple[RequestKind, int]:
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers nor +1 nor -1")
    return (RequestKind.SCALE_BY if text[0] in "+-" else RequestKind.SCALE), int(text)


def run(options: argparse.Namespace) -> int:
    server = find_server(options)
    board, (kind, number) = server.board, options.workers
    wait = Wait(server, options.timeout, set(range(board.capacity)) - set(_ready_slots(board)))
    reply = request(server, kind, number)
    while (ready := _ready_slots(board)) != list(range(reply.result)):
        wait.pause(f"{len(ready)} workers serve instead of {reply.result}")
    print(f"{reply.text}, after {wait.elapsed:.1f} s")
    return 0


def _ready_slots(board: Board) -> list[int]:
    return sorted({row.slot for row in board.rows() if row.state is State.READY})
