"""The log for code that has neither the arbiter's logger nor a worker's at hand."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

#: In a worker this is gunicorn's error log; in other processes the application configures it.
log = logging.getLogger("gunicorn.error")

_INTERVAL_S: Final = 10.0


class ThrottledLog:
    """Logs at most one message in ten seconds.

    For problems that may occur in every request: an unavailable store, or bad input of clients.
    """

    def __init__(self, level: int = logging.WARNING) -> None:
        self._level = level
        self._next = 0.0

    def __call__(self, error: Exception | str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL_S
            log.log(self._level, "%s (said at most every %g s)", error, _INTERVAL_S)


warn_throttled = ThrottledLog()


def hide_credentials(text: str) -> str:
    """Return ``text``, which may be a URL with typing errors, without its user and password."""
    users = r"(?<=//).*@" if "//" in text else r"[^\s'\"]*@"
    return re.sub(r"(?i)(password=)[^&\s'\"]*", r"\1***", re.sub(users, "***@", text))


def one_line(error: BaseException) -> str:
    """Return the class of ``error`` and the first line of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
