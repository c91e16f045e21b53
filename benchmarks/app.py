"""The application that every contender serves: a few lines of WSGI.

Each request names in ``X-Expect`` the process that it should reach, and any
other process answers 421. So stickiness is checked on every measured request,
by the application, and costs every contender the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

ANYONE = "anyone"
PAUSE_PATH = "/pause"
PAUSE_SECONDS = 0.05

BODY = b"hello, world\n"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    worker = str(os.getpid())
    expected = environ.get("HTTP_X_EXPECT", ANYONE)
    if environ["PATH_INFO"] == PAUSE_PATH:
        time.sleep(PAUSE_SECONDS)
    right = expected in (worker, ANYONE)
    start_response(
        "200 OK" if right else "421 Misdirected Request",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(BODY))),
            ("X-Worker", worker),
        ],
    )
    return [BODY]
