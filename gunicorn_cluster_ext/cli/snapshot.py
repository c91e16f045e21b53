"""A snapshot of a server and its workers, from its board and /proc."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime.board import exits
from gunicorn_cluster_ext.runtime.board.exits import ExitCounts
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, Roll
from gunicorn_cluster_ext.runtime.discovery import Server
from gunicorn_cluster_ext.runtime.procfs import processor_time, resident_memory
from gunicorn_cluster_ext.runtime.server_info import ServerInfo

#: The state of a slot without a process, which waits for its next attempt.
WAITING = "waiting"


class Worker(NamedTuple):
    """A process in a slot, or a slot that waits for one. ``words`` are the words of its row.

    ``uptime`` and ``cpu_time`` (used so far) are in seconds, ``memory`` in bytes; None means
    unknown. ``rate`` is in requests per second; ``load`` is the number of CPUs it keeps busy.
    """

    slot: int
    seat: int
    state: str
    words: dict[str, int]
    exits: ExitCounts
    uptime: float = 0.0
    rate: float = 0.0
    memory: int | None = None
    cpu_time: float | None = None
    load: float | None = None

    @property
    def pid(self) -> int | None:
        return self.words.get("pid") or None


class Snapshot(NamedTuple):
    """The state of a server ``at`` one moment (monotonic, in seconds)."""

    at: float
    roll: Roll
    target: int
    capacity: int
    recent_exits: int
    faults: int
    stopping: bool
    workers: list[Worker]

    @property
    def serving(self) -> int:
        """The number of slots in which a process is ready."""
        return len({each.slot for each in self.workers if each.state == "ready"})


def take(server: Server) -> Snapshot:
    """Return a snapshot of ``server``; workers in the order of their slots, then their ages."""
    board, now = server.board, time.monotonic()
    workers = []
    for row in board.rows():
        pid, uptime = row.words["pid"] or None, max(now - row.words["started"] / 1e9, 1e-9)
        cpu_time = processor_time(pid)
        worker = Worker(
            row.slot,
            row.seat,
            row.state.name.lower(),
            row.words,
            exits.of_slot(board, row.slot),
            uptime=uptime,
            rate=row.words["rate"] / 1000,
            memory=resident_memory(pid) or None,
            cpu_time=cpu_time,
            load=None if cpu_time is None else cpu_time / uptime,
        )
        workers.append(worker)
    for slot in set(range(board.target)) - {each.slot for each in workers}:
        seat, slot_exits = slot * SEATS_PER_SLOT, exits.of_slot(board, slot)
        workers.append(Worker(slot, seat, WAITING, {}, slot_exits))
    return Snapshot(
        now,
        board.roll,
        board.target,
        board.capacity,
        board.recent_exits,
        board.faults,
        board.stopping,
        sorted(workers, key=lambda each: (each.slot, each.uptime)),
    )


def as_json(server: Server, info: ServerInfo | None, snapshot: Snapshot) -> dict[str, Any]:
    """Return everything that is known, for programs."""
    roll = {**snapshot.roll._asdict(), "state": snapshot.roll.state.name.lower()}
    return {
        "master": server.pid,
        "directory": str(server.directory),
        "server": None if info is None else info._asdict(),
        "target": snapshot.target,
        "capacity": snapshot.capacity,
        "serving": snapshot.serving,
        "stopping": snapshot.stopping,
        "recent_exits": snapshot.recent_exits,
        "faults": snapshot.faults,
        "roll": roll,
        "workers": [_worker_as_json(each, snapshot.at) for each in snapshot.workers],
    }


def _worker_as_json(worker: Worker, now: float) -> dict[str, Any]:
    counts, reason, at = worker.exits
    return {
        "id": worker.slot,
        "seat": worker.seat,
        **worker.words,
        "pid": worker.pid,
        "state": worker.state,
        "uptime": worker.uptime,
        "rate": worker.rate,
        "memory": worker.memory,
        "processor_time": worker.cpu_time,
        "restarts": {cause.name.lower(): count for cause, count in counts.items()},
        "last_exit": {"reason": reason, "seconds_ago": now - at / 1e9} if at else None,
    }
