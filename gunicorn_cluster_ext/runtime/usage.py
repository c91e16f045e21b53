"""What a process uses of the machine, as Linux says it in /proc; elsewhere nothing is known."""

from __future__ import annotations

import os


def resident_memory(pid: int | None) -> int:
    """The resident memory of a process in bytes; 0 if it is not known (proc(5), statm)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def processor_time(pid: int | None) -> float | None:
    """The seconds of processor time that a process has used (proc(5), stat: utime and stime)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before the last parenthesis may have spaces in it.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
