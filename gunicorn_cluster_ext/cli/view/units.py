"""Numbers as people read them, short enough for a column. No I/O."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Two units at most: ``12s``, ``3m 05s``, ``2h 03m``, ``5d 04h``."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3_600}h {whole % 3_600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3_600:02}h"


def size(count: int) -> str:
    """Bytes in MB, or GB."""
    megabytes = count / (1 << 20)
    return f"{megabytes:.0f}M" if megabytes < 10_000 else f"{megabytes / 1024:.1f}G"


def amount(number: float) -> str:
    """Six characters at most."""
    for unit in ("", "k", "M", "G"):
        if number < 10_000 or unit == "G":
            return f"{number:.0f}{unit}"
        number /= 1_000
    raise AssertionError


def rate(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second < 100 else amount(per_second)
