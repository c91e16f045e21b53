"""When a worker has served long enough. No I/O; used in the arbiter only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.slots import Process

#: Seconds between two samples of memory, and how many in a row must be too large: a peak may pass.
SAMPLE_INTERVAL = 2.0
SAMPLES = 3
#: The share of a lifetime that is taken off at random.
LIFETIME_JITTER = 0.1


@dataclass
class Recycler:
    """What makes a worker due. Each method answers why, or "". ``random`` is uniform in [0, 1)."""

    settings: Settings
    random: Callable[[], float]

    def served(self, requests: int, limit: int) -> str:
        return f"max_requests: it has served {requests}" if 0 < limit <= requests else ""

    def age(self, process: Process, now: float) -> str:
        lifetime = self.settings.max_lifetime
        if not lifetime or process.ready is None:
            return ""
        if process.expires is None:
            process.expires = process.forked + lifetime * (1 - LIFETIME_JITTER * self.random())
        if now < process.expires:
            return ""
        return f"cluster_max_lifetime: it is {now - process.forked:.0f} s old"

    def memory(self, process: Process, size: int) -> str:
        """``size`` in bytes, a new sample."""
        limit = self.settings.max_memory
        process.oversized = process.oversized + 1 if limit and size > limit else 0
        if process.oversized < SAMPLES:
            return ""
        return f"cluster_max_memory: it uses {megabytes(size)}"

    def hard_memory(self, size: int) -> str:
        limit = self.settings.max_memory_hard
        if not limit or size <= limit:
            return ""
        return f"used {megabytes(size)} (cluster_max_memory_hard)"


def megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
