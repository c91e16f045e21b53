"""The CPU time that other programs, and other guests of the host, used during a measurement."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from .process import TICKS_PER_SECOND


class Neighbours:
    """Measures from its creation on."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.used = used_seconds()
        self.waited_for = children_seconds()

    def share(self, ours: float) -> float:
        """Return the share of others in all CPU time; ``ours`` is that of our servers in seconds.

        The time of children that have ended (wrk) is ours too. The kernel's time in soft
        interrupts, much of it loopback traffic, counts for neither.
        """
        wrk = children_seconds() - self.waited_for
        others = used_seconds() - self.used - wrk - ours
        elapsed = time.monotonic() - self.start
        return max(0.0, others / (elapsed * (os.cpu_count() or 1)))


def used_seconds() -> float:
    """Return the CPU time used so far on this machine, including time given to other guests."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, words[1:9])
    return (user + nice + system + steal) / TICKS_PER_SECOND


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
