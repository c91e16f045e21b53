"""What happened to a server and its workers: one JSON object per line, in its directory.

The arbiter appends; anybody who may read the directory reads. Two files at most: when the one
that grows has reached MAX_FILE_BYTES, it replaces the other.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from gunicorn_cluster_ext.runtime.directory import give_away

EVENTS_FILE = "events.jsonl"
OLDER_EVENTS_FILE = "events.1.jsonl"
#: Bytes; twice as much is kept.
MAX_FILE_BYTES = 256 << 10
# Whatever is there, nothing leads to another file, and nothing is waited for.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """``at`` is the wall clock's time, ``monotonic`` that of what never jumps, in seconds.

    ``lost`` counts events before this one that could not be written.
    """

    at: float
    monotonic: float
    event: str
    text: str = ""
    worker: int | None = None
    generation: int | None = None
    pid: int | None = None
    cause: str | None = None
    lost: int = 0


class Journal:
    """Writes events, in the arbiter. Nothing is open between two, so no worker inherits it.

    An event that cannot be written is counted, and
    the first said in the log: a full disk must not stop the server.
    """

    def __init__(self, directory: Path | None, log: Any) -> None:
        self._directory, self._log = directory, log
        self._lost = 0
        self._complained = False

    def write(self, event: str, text: str = "", **fields: Any) -> None:
        """``fields`` are those of Event."""
        if self._directory is None:
            return
        # Names of files in it may be no UTF-8.
        text = text.encode(errors="replace").decode()
        what = Event(time.time(), time.monotonic(), event, text, lost=self._lost, **fields)
        try:
            # What was lost may have been half of a line.
            begin = b"\n" if self._lost else b""
            self._append(self._directory, begin + msgspec.json.encode(what) + b"\n")
        except OSError as error:
            self._lost += 1
            self._complain(error)
        else:
            self._lost = 0

    def _append(self, directory: Path, line: bytes) -> None:
        path = directory / EVENTS_FILE
        if path.exists() and path.lstat().st_size >= MAX_FILE_BYTES:
            path.replace(directory / OLDER_EVENTS_FILE)
        file = os.open(path, _FLAGS, 0o600)
        try:
            self._check(os.fstat(file))
            give_away(file, directory)
            if os.write(file, line) < len(line):
                raise OSError("half of an event was written")
        finally:
            os.close(file)

    def _check(self, found: os.stat_result) -> None:
        """The workers' user can put there what it likes; root does not write to all of it."""
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(f"{EVENTS_FILE} is not the file that the server made")

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._log.warning("Events cannot be written (said once): %s", error)


def older(directory: Path) -> list[Event]:
    """Those of the file that does not grow any more. Raises OSError."""
    try:
        return parse((directory / OLDER_EVENTS_FILE).read_bytes().splitlines())
    except FileNotFoundError:
        return []


class Tail:
    """Those of the file that grows, and of the one that takes its place."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS_FILE
        self._file: BinaryIO | None = None
        self._half = b""

    def read(self) -> list[Event]:
        """What was written since the last time. Raises OSError."""
        lines = self._lines()
        if self._is_over():
            # Between the two looks something may have been written to the old one.
            lines += self._lines()
            self.close()
            lines += self._lines()
        return parse(lines)

    def close(self) -> None:
        """Forget the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._half = None, b""

    def _lines(self) -> list[bytes]:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return []
        *lines, self._half = (self._half + self._file.read()).split(b"\n")
        return lines

    def _is_over(self) -> bool:
        """Whether there is another file now."""
        try:
            now = self._path.stat().st_ino
        except FileNotFoundError:
            return False
        return self._file is not None and os.fstat(self._file.fileno()).st_ino != now


def parse(lines: Iterable[bytes]) -> list[Event]:
    """What is no event, because half of it was written, is left out."""
    found = []
    for line in lines:
        try:
            found.append(_DECODER.decode(line))
        except msgspec.DecodeError:
            continue
    return found


_DECODER = msgspec.json.Decoder(Event)
