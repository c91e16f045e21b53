"""New processes that fail while a command waits for them."""

from __future__ import annotations

from collections.abc import Iterable

from gunicorn_cluster_ext.cli.server import CommandError
from gunicorn_cluster_ext.runtime.board import exits as restarts
from gunicorn_cluster_ext.runtime.board.board import Board


class Failures:
    """Those in ``slots``, from now on."""

    def __init__(self, board: Board, slots: Iterable[int]) -> None:
        self._board = board
        self._before = {slot: restarts.of_slot(board, slot).unwanted for slot in slots}

    def check(self) -> None:
        """Raises CommandError, which says why, when there was one."""
        for slot, before in self._before.items():
            now = restarts.of_slot(self._board, slot)
            if now.unwanted > before:
                raise CommandError(f"worker {slot} {now.reason}; the server will try again")
