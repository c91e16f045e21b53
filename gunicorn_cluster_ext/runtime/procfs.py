"""Facts about a process from Linux's /proc (proc(5)). Other systems know only whether it runs."""

from __future__ import annotations

import os


def is_alive(pid: int) -> bool:
    """Return whether the process ``pid`` runs, as far as this user can know."""
    try:
        return _stat(pid)[0] != b"Z"  # a zombie has exited, but is not reaped yet
    except OSError:
        pass  # another system, or /proc hides other users' processes
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def resident_memory(pid: int | None) -> int:
    """Return the resident memory of a process in bytes, or 0 if it is unknown (statm)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def processor_time(pid: int | None) -> float | None:
    """Return the CPU time that a process has used, in seconds, or None (stat: utime, stime)."""
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int | None) -> list[bytes]:
    """Return the fields of stat from the state on. Raise OSError without such a process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name before the last parenthesis may contain spaces.
        return file.read().rpartition(b")")[2].split()
