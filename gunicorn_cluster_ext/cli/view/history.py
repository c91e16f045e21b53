"""Rates and loads between two snapshots of a server, and the rates before. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gunicorn_cluster_ext.cli.snapshot import Snapshot, Worker

#: The number of rates that a slot's sparkline shows.
LENGTH = 20
BLOCKS = "▁▂▃▄▅▆▇█"
#: For a terminal that cannot show BLOCKS.
PLAIN_BLOCKS = "_.:-=+*#"


class History:
    """What the snapshots of one server have shown, the newest last."""

    def __init__(self) -> None:
        #: By slot and generation: the last snapshot's time and worker.
        self._before: dict[tuple[int, int], tuple[float, Worker]] = {}
        self._rates: dict[int, deque[float]] = {}

    def add(self, snapshot: Snapshot) -> list[Worker]:
        """Return the workers, with their rate and load since the previous snapshot."""
        workers = [self._measured(each, snapshot.at) for each in snapshot.workers]
        self._before = {_process(each): (snapshot.at, each) for each in snapshot.workers}
        for slot in {each.slot for each in workers}:
            total = sum(each.rate for each in workers if each.slot == slot)
            self._rates.setdefault(slot, deque(maxlen=LENGTH)).append(total)
        return workers

    def _measured(self, worker: Worker, now: float) -> Worker:
        at, before = self._before.get(_process(worker), (now, worker))
        passed = now - at
        if passed <= 0 or not worker.words:
            return worker
        load = None
        if worker.cpu_time is not None and before.cpu_time is not None:
            load = (worker.cpu_time - before.cpu_time) / passed
        served = worker.words["requests"] - before.words["requests"]
        return worker._replace(rate=served / passed, load=load)

    def line(self, worker: Worker, blocks: str) -> str:
        """Return the sparkline of the worker's slot. All slots have the same scale."""
        highest = max((max(rates) for rates in self._rates.values()), default=0.0)
        return sparkline(list(self._rates[worker.slot]), highest, blocks)


def _process(worker: Worker) -> tuple[int, int]:
    return worker.slot, worker.words.get("generation", 0)


def sparkline(values: Sequence[float], highest: float, blocks: str) -> str:
    """Return a block for each value; ``highest`` is drawn as the last block."""
    top = len(blocks) - 1
    return "".join(blocks[round(top * value / highest) if highest else 0] for value in values)
