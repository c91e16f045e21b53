"""How much CPU time others used meanwhile: other programs, and other guests of the host."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from .process import TICKS_PER_SECOND


class Neighbours:
    """Counts from its creation on."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.used = used_seconds()
        self.waited_for = children_seconds()

    def share(self, ours: float) -> float:
        """Others' part of all CPU time; ``ours`` are the seconds that our servers used.

        What ended children used is ours too: that is wrk. What the kernel does in soft
        interrupts, much of it loopback traffic, is nobody's.
        """
        wrk = children_seconds() - self.waited_for
        others = used_seconds() - self.used - wrk - ours
        elapsed = time.monotonic() - self.start
        return max(0.0, others / (elapsed * (os.cpu_count() or 1)))


def used_seconds() -> float:
    """CPU time used so far on this machine, and time the host gave to other guests."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, words[1:9])
    return (user + nice + system + steal) / TICKS_PER_SECOND


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
