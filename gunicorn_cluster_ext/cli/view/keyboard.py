"""Single keys of a terminal, while a command shows something."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType


class Keyboard:
    """A context in which keys are read as they are pressed, and not shown."""

    def __enter__(self) -> Keyboard:
        self._file = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._file, termios.TCSAFLUSH, self._before)

    def wait(self, seconds: float) -> str:
        """The keys that are pressed; "" if none is in that time."""
        ready, _, _ = select.select([self._file], [], [], seconds)
        if not ready:
            return ""
        # Nothing to read means that the terminal is gone.
        return os.read(self._file, 64).decode(errors="replace") or QUIT


QUIT = "q"
