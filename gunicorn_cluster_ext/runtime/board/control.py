"""Control requests: what a command asks of a running server, and the reply, on the board.

A command writes the number, kind and argument of its request, the arbiter the reply. A lock on the
board's file lets one command at a time ask. ``layout.ServerWord`` numbers the words.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import ServerWord
from gunicorn_cluster_ext.runtime.procfs import is_alive

#: The kind of a request that was withdrawn, or is being written.
_WITHDRAWN = 0
_POLL_S = 0.02
_SIGN = 1 << 64


class RequestKind(enum.IntEnum):
    """The control requests, with their argument."""

    ROLL = 1
    ABORT_ROLL = 2
    RESTART = 3  # the slot
    SCALE = 4  # the number of workers
    SCALE_BY = 5  # the number of workers to add


class Request(NamedTuple):
    number: int
    kind: int
    argument: int


class Reply(NamedTuple):
    """The arbiter's reply.

    ``result`` depends on the request: the number of the roll that began, was refused or aborted,
    the generation of the process to be replaced, the new number of workers; else 0.
    """

    ok: bool
    text: str
    result: int = 0


class NoReply(Exception):
    """The server does not reply. The message says why."""


# --- in the arbiter -----------------------------------------------------------------------------


def pending(board: Board) -> Request | None:
    """Return the request that has no reply yet, or None."""
    words = board.words
    number, kind, argument = (
        words[ServerWord.REQUEST_NUMBER],
        words[ServerWord.REQUEST_KIND],
        words[ServerWord.REQUEST_ARGUMENT],
    )
    if number <= words[ServerWord.REPLY_NUMBER] or kind == _WITHDRAWN:
        return None
    if (words[ServerWord.REQUEST_NUMBER], words[ServerWord.REQUEST_KIND]) != (number, kind):
        return None  # another command is writing its request; the next turn reads it
    return Request(number, kind, argument - _SIGN if argument >= _SIGN >> 1 else argument)


def reply(board: Board, request: Request, reply: Reply) -> None:
    """Publish the reply to ``request``."""
    words = board.words
    words[ServerWord.REPLY_OK], words[ServerWord.REPLY_RESULT] = reply.ok, reply.result
    board.set_text(ServerWord.REPLY_TEXT, reply.text)
    words[ServerWord.REPLY_NUMBER] = request.number


# --- in a command -------------------------------------------------------------------------------


def ask(path: Path, kind: RequestKind, argument: int = 0, timeout: float | None = 10.0) -> Reply:
    """Send a request to the server whose board is the file ``path``, and return the reply.

    ``timeout`` is in seconds; None waits as long as the server runs. Raise NoReply, or OSError if
    the board cannot be written.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with path.open("r+b") as file:
        while not _lock(file.fileno()):
            _pause(deadline, "another command waits for its reply")
        board = Board(mmap.mmap(file.fileno(), 0), path)
        words = board.words
        number = max(words[ServerWord.REQUEST_NUMBER], words[ServerWord.REPLY_NUMBER]) + 1
        words[ServerWord.REQUEST_KIND] = _WITHDRAWN
        words[ServerWord.REQUEST_ARGUMENT] = argument % _SIGN
        words[ServerWord.REQUEST_NUMBER] = number
        words[ServerWord.REQUEST_KIND] = kind
        try:
            _wait(board, number, deadline)
        except BaseException:
            # The arbiter must not carry out a request whose command no longer waits.
            words[ServerWord.REQUEST_KIND] = _WITHDRAWN
            raise
        return Reply(
            bool(words[ServerWord.REPLY_OK]),
            board.text(ServerWord.REPLY_TEXT),
            words[ServerWord.REPLY_RESULT],
        )


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(board: Board, number: int, deadline: float | None) -> None:
    master = board.master_pid
    try:
        # SIGCHLD is harmless, and starts a turn of the arbiter's loop.
        os.kill(master, signal.SIGCHLD)
    except (PermissionError, ProcessLookupError):
        pass  # the next turn starts within a second, unless the server has ended
    while board.words[ServerWord.REPLY_NUMBER] != number:
        if not is_alive(master):
            raise NoReply("the server has ended")
        _pause(deadline, "the server does not reply")


def _pause(deadline: float | None, complaint: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise NoReply(complaint)
    time.sleep(_POLL_S)
