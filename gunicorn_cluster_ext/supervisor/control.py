"""What the command line wishes for is done, or refused. Runs in the arbiter."""

from __future__ import annotations

import time
from typing import Any

from gunicorn_cluster_ext.runtime.board import control as wishes
from gunicorn_cluster_ext.runtime.board.control import Answer, Kind, Wish
from gunicorn_cluster_ext.supervisor.exits import RESTART


class Steering:
    """Looks for a wish in each turn of ``arbiter``'s loop."""

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._cluster = arbiter.cluster

    def turn(self) -> None:
        board = self._cluster.board
        wish = wishes.pending(board)
        if wish is not None:
            answer = self._do(wish)
            if wish.kind != Kind.ROLL:  # of a reload enough is said
                self._cluster.reporter.wish(answer.text, granted=answer.granted)
            wishes.answer(board, wish, answer)

    def _do(self, wish: Wish) -> Answer:
        match wish.kind:
            case Kind.ROLL:
                return self._roll()
            case Kind.ABORT_ROLL:
                return self._abort_roll()
            case Kind.RESTART:
                return self._restart(wish.of)
            case Kind.SCALE:
                return self._scale(wish.of)
            case Kind.SCALE_BY:
                return self._scale(self._arbiter.num_workers + wish.of)
        return Answer(False, f"this version knows no wish {wish.kind}")

    def _roll(self) -> Answer:
        """As HUP does. The answer is the number of the roll that has begun or was refused."""
        replacer, before = self._cluster.supervisor.replacer, self._cluster.supervisor.replacer.roll
        self._arbiter.handle_hup()
        self._arbiter.publish()
        roll = replacer.roll
        if roll is None or roll is before:
            return Answer(False, "the configuration was refused; the roll under way goes on")
        return Answer(roll.is_active, roll.reason or f"roll {roll.version}", roll.version)

    def _abort_roll(self) -> Answer:
        roll = self._cluster.supervisor.replacer.roll
        if roll is None or not roll.is_active:
            return Answer(False, "no roll is under way")
        self._arbiter.fail_roll("it was aborted", time.monotonic())
        self._arbiter.publish()
        return Answer(True, f"roll {roll.version} aborted", roll.version)

    def _restart(self, slot: int) -> Answer:
        supervisor = self._cluster.supervisor
        process = supervisor.table.current(slot) if 0 <= slot < self._arbiter.num_workers else None
        roll = supervisor.replacer.roll
        if process is None:
            return Answer(False, f"there is no worker {slot}")
        if roll is not None and roll.is_active:
            return Answer(False, "a roll is under way, and replaces every worker")
        supervisor.recycle(process, RESTART, time.monotonic())
        return Answer(True, f"worker {slot} is replaced", process.place.generation)

    def _scale(self, count: int) -> Answer:
        before, capacity = self._arbiter.num_workers, self._cluster.capacity
        if count < 1:
            return Answer(False, "a server has one worker at least; see stop")
        if count > capacity:
            return Answer(False, f"there are {capacity} slots: set cluster_slots and restart")
        self._arbiter.num_workers = count
        return Answer(True, f"{count} workers instead of {before}", count)
