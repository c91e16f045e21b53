"""How a server and its workers are at one moment, as its board and /proc say it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime.board import exits
from gunicorn_cluster_ext.runtime.board.board import Board, Row
from gunicorn_cluster_ext.runtime.board.exits import ExitCounts
from gunicorn_cluster_ext.runtime.board.layout import Roll
from gunicorn_cluster_ext.runtime.discovery import Server
from gunicorn_cluster_ext.runtime.procfs import processor_time, resident_memory
from gunicorn_cluster_ext.runtime.server_info import ServerInfo

#: The state of a slot that has no process, and is to have one: it waits for its next attempt.
WAITING = "waiting"


class Worker(NamedTuple):
    """A process in a slot, or a slot that waits for one. ``words`` are those of its row.

    ``uptime`` and ``processor`` (used so far) in seconds, ``memory`` in bytes; None: not known.
    ``rate`` in requests per second; ``load``: how many processors it keeps busy.
    """

    slot: int
    seat: int
    state: str
    words: dict[str, int]
    exits: ExitCounts
    uptime: float = 0.0
    rate: float = 0.0
    memory: int | None = None
    processor: float | None = None
    load: float | None = None

    @property
    def pid(self) -> int | None:
        return self.words.get("pid") or None


class Snapshot(NamedTuple):
    """``at`` is monotonic, in seconds."""

    at: float
    roll: Roll
    target: int
    capacity: int
    recent_exits: int
    stopping: bool
    workers: list[Worker]

    @property
    def serving(self) -> int:
        """In how many slots a process serves."""
        return len({each.slot for each in self.workers if each.state == "ready"})


def read(server: Server) -> Snapshot:
    """Look once."""
    board, now = server.board, time.monotonic()
    workers = [_worker(board, row, now) for row in board.rows()]
    held = {each.slot for each in workers}
    missing = [_missing(board, slot) for slot in range(board.target) if slot not in held]
    workers = sorted([*workers, *missing], key=lambda each: (each.slot, each.uptime))
    return Snapshot(
        now,
        board.roll,
        board.target,
        board.capacity,
        board.recent_exits,
        board.stopping,
        workers,
    )


def _worker(board: Board, row: Row, now: float) -> Worker:
    pid = row.words["pid"] or None
    uptime, processor = max(now - row.words["started"] / 1e9, 1e-9), processor_time(pid)
    return Worker(
        row.slot,
        row.seat,
        row.state.name.lower(),
        row.words,
        exits.of_slot(board, row.slot),
        uptime=uptime,
        rate=row.words["rate"] / 1000,
        memory=resident_memory(pid) or None,
        processor=processor,
        load=None if processor is None else processor / uptime,
    )


def _missing(board: Board, slot: int) -> Worker:
    return Worker(slot, 2 * slot, WAITING, {}, exits.of_slot(board, slot))


def as_json(server: Server, about: ServerInfo | None, snapshot: Snapshot) -> dict[str, Any]:
    """All of it, for programs."""
    roll = {**snapshot.roll._asdict(), "state": snapshot.roll.state.name.lower()}
    return {
        "master": server.pid,
        "directory": str(server.directory),
        "server": None if about is None else about._asdict(),
        "target": snapshot.target,
        "capacity": snapshot.capacity,
        "serving": snapshot.serving,
        "stopping": snapshot.stopping,
        "recent_exits": snapshot.recent_exits,
        "roll": roll,
        "workers": [_worker_as_json(each, snapshot.at) for each in snapshot.workers],
    }


def _worker_as_json(worker: Worker, now: float) -> dict[str, Any]:
    ends = worker.exits
    last = {"reason": ends.reason, "seconds_ago": now - ends.at / 1e9} if ends.at else None
    return {
        "id": worker.slot,
        "seat": worker.seat,
        **worker.words,
        "pid": worker.pid,
        "state": worker.state,
        "uptime": worker.uptime,
        "rate": worker.rate,
        "memory": worker.memory,
        "processor_time": worker.processor,
        "restarts": {cause.name.lower(): count for cause, count in ends.counts.items()},
        "last_exit": last,
    }
