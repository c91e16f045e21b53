"""Whether greenlets take long."""

from __future__ import annotations

import time
from typing import Any, Final

#: Seconds for which greenlets may run before the kernel is asked again what is new. When they take
#: longer, requests wait for them. On a machine that is busy with other things they take
#: milliseconds longer for that alone.
PATIENCE: Final = 0.02


class Pace:
    """The pace of the event loop ``loop``. Its turns are counted from poll to poll."""

    def __init__(self, loop: Any) -> None:
        self._polled = time.monotonic()
        self._was_behind = False
        self._after_poll = loop.check()
        self._after_poll.start(self._begin)
        if "libuv" in type(loop).__module__:
            return  # it cannot tell when it is about to poll: only the present turn is known
        self._before_poll = loop.prepare()
        self._before_poll.priority = loop.MINPRI  # after the greenlets that are to run first
        self._before_poll.start(self._end)

    def _begin(self) -> None:
        self._polled = time.monotonic()

    def _end(self) -> None:
        self._was_behind = self._is_slow()

    def _is_slow(self) -> bool:
        return time.monotonic() - self._polled > PATIENCE

    def is_behind(self) -> bool:
        """Whether what is served now has waited because of what others do in this process."""
        return self._was_behind or self._is_slow()
