"""When a worker has served long enough. No I/O; used in the arbiter only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.slots import Process

#: How many samples in a row must be too large: a peak may pass.
MEMORY_SAMPLES = 3
#: The share of a lifetime that is taken off at random, or all workers would expire together.
LIFETIME_JITTER = 0.1


@dataclass
class Recycler:
    """Decides which workers are due to be replaced. ``random`` is uniform in [0, 1).

    Each method returns the reason, or "" if there is none.
    """

    settings: Settings
    random: Callable[[], float]

    def served(self, requests: int, limit: int) -> str:
        return f"max_requests: it has served {requests}" if 0 < limit <= requests else ""

    def age(self, process: Process, now: float) -> str:
        lifetime = self.settings.max_lifetime
        if not lifetime or process.ready_at is None:
            return ""
        if process.expires_at is None:
            share = 1 - LIFETIME_JITTER * self.random()
            process.expires_at = process.forked_at + lifetime * share
        if now < process.expires_at:
            return ""
        return f"cluster_max_lifetime: it is {now - process.forked_at:.0f} s old"

    def memory(self, process: Process, size: int) -> str:
        """Take a new sample of the memory of ``process``: ``size`` bytes."""
        limit = self.settings.max_memory
        process.oversized = process.oversized + 1 if limit and size > limit else 0
        if process.oversized < MEMORY_SAMPLES:
            return ""
        return f"cluster_max_memory: it uses {_megabytes(size)}"

    def hard_memory(self, size: int) -> str:
        """Return why a process that uses ``size`` bytes is to be killed at once."""
        limit = self.settings.max_memory_hard
        if not limit or size <= limit:
            return ""
        return f"used {_megabytes(size)} (cluster_max_memory_hard)"


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
