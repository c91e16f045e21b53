"""A program in a pseudo-terminal."""

import fcntl
import os
import re
import select
import struct
import termios
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.closing import Closing
from tests.harness.waiting import wait_until

_CODE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")
_PATIENCE_S = 60


class Terminal(Closing):
    """``text`` is all that was shown so far; ``raw`` with what a terminal does not show.

    As a context it ends the program, if that has not ended by itself.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        env: Mapping[str, str],
        columns: int = 120,
        lines: int = 40,
    ) -> None:
        self.raw = ""
        self._data = b""
        self.status: int | None = None
        # In the child there is nothing but an exec. That pytest-xdist has threads does no harm.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid, self._file = os.forkpty()
        if self.pid == 0:
            os.chdir(directory)
            size = struct.pack("HHHH", lines, columns, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            os.execve(command[0], list(command), _for_a_terminal(env))

    def close(self) -> None:
        try:
            if self.status is None:
                os.kill(self.pid, 9)
                self.wait_exit()
        finally:
            os.close(self._file)

    @property
    def text(self) -> str:
        return _CODE.sub("", self.raw).replace("\r\n", "\n")

    @property
    def attributes(self) -> list[Any]:
        """How the terminal treats what is typed: echo, line by line, and so on."""
        return termios.tcgetattr(self._file)

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, words: str, *, after: int = 0) -> None:
        """Wait until the program has shown these words, beyond so many characters of ``text``."""

        def shown() -> bool:
            self._read()
            return words in self.text[after:]

        try:
            wait_until(shown, _PATIENCE_S, repr(words))
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{self.text}") from None

    def wait_exit(self) -> int:
        """The exit status, when the program has ended: negative for a signal."""
        wait_until(self._has_ended, _PATIENCE_S, "the program's end")
        self._read()
        assert self.status is not None
        return self.status

    def _has_ended(self) -> bool:
        self._read()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def _read(self) -> None:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and select.select([self._file], [], [], 0)[0]:
            try:
                data = os.read(self._file, 65_536)
            except OSError:  # the program has closed its end
                return
            self._data += data
            self.raw = self._data.decode(errors="ignore")
            if not data:
                return


def _for_a_terminal(env: Mapping[str, str]) -> dict[str, str]:
    """Nothing in it says how large another one is."""
    kept = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color"}
