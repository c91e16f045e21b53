"""The events of a server and its workers: one JSON object per line, in the server's directory.

The arbiter appends; anyone who may read the directory can read them. There are two files: when
EVENTS_FILE has reached MAX_FILE_BYTES, it replaces OLDER_EVENTS_FILE, and a new one begins.
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
MAX_FILE_BYTES = 256 << 10
# The workers' user owns the directory: a link must not lead to another file, nor a FIFO block.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event. ``at`` is the wall clock's time, ``monotonic`` a clock's that never jumps, in s.

    ``lost`` counts the events before this one that could not be written.
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
    """Writes events, in the arbiter. It keeps no file open, so no worker inherits one.

    Events that cannot be written are counted, and the first is reported in the log: a full disk
    must not stop the server.
    """

    def __init__(self, directory: Path | None, log: Any) -> None:
        self._directory, self._log = directory, log
        self._lost = 0
        self._warned = False

    def write(self, event: str, text: str = "", **fields: Any) -> None:
        """Write an event; ``fields`` are the fields of Event."""
        if self._directory is None:
            return
        # Errors contain file names, which may not be valid UTF-8.
        text = text.encode(errors="replace").decode()
        entry = Event(time.time(), time.monotonic(), event, text, lost=self._lost, **fields)
        try:
            # A lost event may have left half a line.
            begin = b"\n" if self._lost else b""
            _append(self._directory, begin + msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            self._lost += 1
            if not self._warned:
                self._warned = True
                self._log.warning("Events cannot be written (said once): %s", error)
        else:
            self._lost = 0


def _append(directory: Path, line: bytes) -> None:
    path = directory / EVENTS_FILE
    if path.exists() and path.lstat().st_size >= MAX_FILE_BYTES:
        path.replace(directory / OLDER_EVENTS_FILE)
    file = os.open(path, _FLAGS, 0o600)
    try:
        status = os.fstat(file)
        # The workers' user may have put another file there, and root must not write to it.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(f"{EVENTS_FILE} is not the file that the server made")
        give_away(file, directory)
        if os.write(file, line) < len(line):
            raise OSError("an event was written only in part")
    finally:
        os.close(file)


def older(directory: Path) -> list[Event]:
    """Return the events of the file that no longer grows. Raise OSError."""
    try:
        return parse((directory / OLDER_EVENTS_FILE).read_bytes().splitlines())
    except FileNotFoundError:
        return []


class Tail:
    """Follows the file that grows, and each file that takes its place."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS_FILE
        self._file: BinaryIO | None = None
        self._partial = b""

    def read(self) -> list[Event]:
        """Return the events that were written since the last call. Raise OSError."""
        lines = self._lines()
        if self._is_replaced():
            # The old file may have grown between the read and the check.
            lines += self._lines()
            self.close()
            lines += self._lines()
        return parse(lines)

    def close(self) -> None:
        """Close the file. The next read starts at the beginning of the present one."""
        if self._file is not None:
            self._file.close()
        self._file, self._partial = None, b""

    def _lines(self) -> list[bytes]:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return []
        *lines, self._partial = (self._partial + self._file.read()).split(b"\n")
        return lines

    def _is_replaced(self) -> bool:
        """Return whether another file has taken the place of the open one."""
        try:
            now = self._path.stat().st_ino
        except FileNotFoundError:
            return False
        return self._file is not None and os.fstat(self._file.fileno()).st_ino != now


def parse(lines: Iterable[bytes]) -> list[Event]:
    """Return the events in ``lines``. Lines that were written only in part are left out."""
    found = []
    for line in lines:
        try:
            found.append(_DECODER.decode(line))
        except msgspec.DecodeError:
            continue
    return found


_DECODER = msgspec.json.Decoder(Event)
