"""The machine and the time of a run, without which figures mean nothing."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path


def describe() -> list[str]:
    now = datetime.now(timezone.utc)
    return [
        f"{now:%Y-%m-%d %H:%M} UTC",
        f"{cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}, gunicorn {version('gunicorn')}",
    ]


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
