"""Dies a moment after its worker is ready, in the workers that the file "doomed" names.

The file has their numbers, and may come and go while they live; without it all is well.
"""

import os
import threading
import time
from pathlib import Path

from whoami import app

from gunicorn_cluster_ext import worker_id

__all__ = ["app"]

READY_S = 0.3


def die() -> None:
    # It is loaded now; ready it is some milliseconds later.
    time.sleep(READY_S + 0.05)
    while str(worker_id()) not in doomed():
        time.sleep(0.05)
    os._exit(7)


def doomed() -> list[str]:
    try:
        return Path("doomed").read_text().split()
    except OSError:
        return []


threading.Thread(target=die, daemon=True).start()
