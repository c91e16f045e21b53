"""Polling for what another process does, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_S = 0.02


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Return the first true answer of `predicate`; fail if none comes in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        # The deadline is read before the question: the last one is asked at or after it.
        late = time.monotonic() >= deadline
        answer = predicate()
        if answer:
            return answer
        if late:
            raise AssertionError(f"waited {timeout:g} s in vain for: {what} (last: {answer!r})")
        time.sleep(_PAUSE_S)
