"""``gunicorn-cluster restart``: replace one worker; its successor starts first."""

from __future__ import annotations

import argparse

from gunicorn_cluster_ext.cli.server import (
    CommandError,
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
    parser.add_argument("id", type=int, help="the worker's id, as status shows it")
    add_server_options(parser)
    add_timeout(parser, "how long to wait for the successor")


def run(options: argparse.Namespace) -> int:
    server, slot = find_server(options), options.id
    if not 0 <= slot < server.board.capacity:
        raise CommandError(f"there is no worker {slot}")
    wait = Wait(server, options.timeout, [slot])
    generation = request(server, RequestKind.RESTART, slot).result
    while (pid := _successor(server.board, slot, generation)) is None:
        wait.pause(f"worker {slot} is not replaced yet")
    print(f"Worker {slot} was replaced in {wait.elapsed:.1f} s, its pid is {pid}")
    return 0


def _successor(board: Board, slot: int, generation: int) -> int | None:
    """Return the pid of a ready process of ``slot`` that is newer than ``generation``."""
    for row in board.rows():
        if row.slot == slot and row.state is State.READY and row.words["generation"] > generation:
            return row.words["pid"]
    return None
