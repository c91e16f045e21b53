"""How busy the machine is, so that time limits can allow for it."""

import os
from pathlib import Path

_LOADAVG = Path("/proc/loadavg")


class Crowding:
    """The average number of runnable threads per processor, at least 1.

    With twice as many as there are processors, what takes a second alone takes two.
    """

    def __init__(self) -> None:
        self._sum = self._looks = 0

    def look(self) -> None:
        if _LOADAVG.exists():  # Linux
            self._sum += int(_LOADAVG.read_text().split()[3].partition("/")[0])
            self._looks += 1

    @property
    def factor(self) -> float:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return max(1.0, self._sum / self._looks / processors) if self._looks else 1.0
