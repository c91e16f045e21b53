"""Carries out control requests, or refuses them. Runs in the arbiter."""

from __future__ import annotations

import time

from gunicorn_cluster_ext.runtime.board import control
from gunicorn_cluster_ext.runtime.board.control import Reply, Request, RequestKind
from gunicorn_cluster_ext.supervisor.arbiter_protocol import SupervisedArbiter
from gunicorn_cluster_ext.supervisor.cluster import Cluster
from gunicorn_cluster_ext.supervisor.exits import RESTART


class ControlRequests:
    """Looks for a control request in each turn of ``arbiter``'s loop."""

    def __init__(self, arbiter: SupervisedArbiter, cluster: Cluster) -> None:
        self._arbiter, self._lifecycle = arbiter, cluster.lifecycle
        self._board, self._reporter = cluster.board, cluster.reporter

    def turn(self) -> None:
        request = control.pending(self._board)
        if request is not None:
            reply = self._do(request)
            if request.kind != RequestKind.ROLL:  # a reload is reported anyway
                self._reporter.control(reply.text, ok=reply.ok)
            control.reply(self._board, request, reply)

    def _do(self, request: Request) -> Reply:
        match request.kind:
            case RequestKind.ROLL:
                return self._roll()
            case RequestKind.ABORT_ROLL:
                roll = self._lifecycle.roll
                if roll is None or not roll.is_active:
                    return Reply(False, "no roll is under way")
                self._arbiter.fail_roll("it was aborted", time.monotonic())
                self._arbiter.publish()
                return Reply(True, f"roll {roll.version} aborted", roll.version)
            case RequestKind.RESTART:
                return self._restart(request.argument)
            case RequestKind.SCALE:
                return self._scale(request.argument)
            case RequestKind.SCALE_BY:
                return self._scale(self._arbiter.num_workers + request.argument)
        return Reply(False, f"this version of the server has no request {request.kind}")

    def _roll(self) -> Reply:
        """Do what HUP does. The reply has the number of the roll that began or was refused."""
        before = self._lifecycle.roll
        self._arbiter.handle_hup()
        self._arbiter.publish()
        roll = self._lifecycle.roll
        if roll is None or roll is before:
            return Reply(False, "the configuration was refused; the current roll continues")
        return Reply(roll.is_active, roll.reason or f"roll {roll.version}", roll.version)

    def _restart(self, slot: int) -> Reply:
        exists = 0 <= slot < self._arbiter.num_workers
        process = self._lifecycle.current(slot) if exists else None
        roll = self._lifecycle.roll
        if process is None:
            return Reply(False, f"there is no worker {slot}")
        if roll is not None and roll.is_active:
            return Reply(False, "a roll is under way, and replaces every worker")
        self._lifecycle.recycle(process, RESTART, time.monotonic())
        return Reply(True, f"worker {slot} is being replaced", process.place.generation)

    def _scale(self, count: int) -> Reply:
        before, capacity = self._arbiter.num_workers, self._board.capacity
        if count < 1:
            return Reply(False, "a server needs one worker at least; see stop")
        if count > capacity:
            return Reply(False, f"there are {capacity} slots: set cluster_slots and restart")
        self._arbiter.num_workers = count
        return Reply(True, f"{count} workers instead of {before}", count)
