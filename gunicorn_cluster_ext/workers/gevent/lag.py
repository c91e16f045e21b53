"""The lag of gevent's event loop.

Greenlets that do not wait hold up all others, and nobody knows for how long beforehand. When those
of one turn took 20 ms, a request without an owner goes to an idle worker, if there is one. (5 ms
was tried: on a busy machine every turn takes that long.) libuv does not tell when it is about to
wait; there only the present turn counts.
"""

from __future__ import annotations

import time
from typing import Any, Final

#: Seconds for which greenlets may run before the kernel is asked again what is new. When they take
#: longer, requests wait for them. On a machine that is busy with other things they take
#: milliseconds longer for that alone.
LAG_LIMIT_S: Final = 0.02


class LoopLag:
    """Measures the turns of the event loop ``loop``, from poll to poll."""

    def __init__(self, loop: Any) -> None:
        self._polled = time.monotonic()
        self._was_behind = False
        self._after_poll = loop.check()
        self._after_poll.start(self._begin)
        if "libuv" in type(loop).__module__:
            return  # it cannot say when it is about to poll: only the present turn is known
        self._before_poll = loop.prepare()
        self._before_poll.priority = loop.MINPRI  # after the greenlets that are to run first
        self._before_poll.start(self._end)

    def _begin(self) -> None:
        self._polled = time.monotonic()

    def _end(self) -> None:
        self._was_behind = self._is_slow()

    def _is_slow(self) -> bool:
        return time.monotonic() - self._polled > LAG_LIMIT_S

    def is_behind(self) -> bool:
        """Return True if a request that is served now has waited for other greenlets."""
        return self._was_behind or self._is_slow()
