"""Carries out control requests, or refuses them. Runs in the arbiter."""

from __future__ import annotations

import time
from typing import Any

from gunicorn_cluster_ext.runtime.board import control
from gunicorn_cluster_ext.runtime.board.control import Reply, Request, RequestKind
from gunicorn_cluster_ext.supervisor.exits import RESTART


class ControlRequests:
    """Looks for a control request in each turn of ``arbiter``'s loop."""

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._cluster = arbiter.cluster

    def turn(self) -> None:
        board = self._cluster.board
        request = control.pending(board)
        if request is not None:
            reply = self._do(request)
            if request.kind != RequestKind.ROLL:  # of a reload enough is said
                self._cluster.reporter.control(reply.text, ok=reply.ok)
            control.reply(board, request, reply)

    def _do(self, request: Request) -> Reply:
        match request.kind:
            case RequestKind.ROLL:
                return self._roll()
            case RequestKind.ABORT_ROLL:
                return self._abort_roll()
            case RequestKind.RESTART:
                return self._restart(request.argument)
            case RequestKind.SCALE:
                return self._scale(request.argument)
            case RequestKind.SCALE_BY:
                return self._scale(self._arbiter.num_workers + request.argument)
        return Reply(False, f"this version knows no request {request.kind}")

    def _roll(self) -> Reply:
        """As HUP does. The reply is the number of the roll that has begun or was refused."""
        replacer, before = self._cluster.supervisor.replacer, self._cluster.supervisor.replacer.roll
        self._arbiter.handle_hup()
        self._arbiter.publish()
        roll = replacer.roll
        if roll is None or roll is before:
            return Reply(False, "the configuration was refused; the roll under way goes on")
        return Reply(roll.is_active, roll.reason or f"roll {roll.version}", roll.version)

    def _abort_roll(self) -> Reply:
        roll = self._cluster.supervisor.replacer.roll
        if roll is None or not roll.is_active:
            return Reply(False, "no roll is under way")
        self._arbiter.fail_roll("it was aborted", time.monotonic())
        self._arbiter.publish()
        return Reply(True, f"roll {roll.version} aborted", roll.version)

    def _restart(self, slot: int) -> Reply:
        supervisor = self._cluster.supervisor
        process = supervisor.table.current(slot) if 0 <= slot < self._arbiter.num_workers else None
        roll = supervisor.replacer.roll
        if process is None:
            return Reply(False, f"there is no worker {slot}")
        if roll is not None and roll.is_active:
            return Reply(False, "a roll is under way, and replaces every worker")
        supervisor.recycle(process, RESTART, time.monotonic())
        return Reply(True, f"worker {slot} is replaced", process.place.generation)

    def _scale(self, count: int) -> Reply:
        before, capacity = self._arbiter.num_workers, self._cluster.shared.capacity
        if count < 1:
            return Reply(False, "a server has one worker at least; see stop")
        if count > capacity:
            return Reply(False, f"there are {capacity} slots: set cluster_slots and restart")
        self._arbiter.num_workers = count
        return Reply(True, f"{count} workers instead of {before}", count)
