"""Wishes: what the command line wants of a running server, and its answer, on the board.

    48      number of the wish; none is used twice
    49, 50  what it is (``Kind``; 0: nothing, it was withdrawn or is being written; written last),
            and of what (as a signed number)
    51      number of the last wish that was answered; written last
    52, 53  whether it was granted, and a number that goes with that (of the roll)
    55-63   what is to be said of it, as text

A command writes 48 to 50, the arbiter the others. Commands take turns by a lock on the file.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.directory import is_alive

_NUMBER, _KIND, _OF = 48, 49, 50
_ANSWERED, _GRANTED, _RESULT = 51, 52, 53
_TEXT, _TEXT_END = 55, 64
_NOTHING = 0
_POLL_S = 0.02
_SIGN = 1 << 64


class Kind(enum.IntEnum):
    """What can be wished for, and of what."""

    ROLL = 1
    ABORT_ROLL = 2
    RESTART = 3  # the slot
    SCALE = 4  # how many workers
    SCALE_BY = 5  # how many more


class Wish(NamedTuple):
    number: int
    kind: int
    of: int


class Answer(NamedTuple):
    """``result`` is the number of the roll that has begun, or that was refused; else 0."""

    granted: bool
    text: str
    result: int = 0


class Unanswered(Exception):
    """The message says why."""


# --- in the arbiter -----------------------------------------------------------------------------


def pending(board: Board) -> Wish | None:
    """The wish that is not answered yet."""
    words = board.words
    number, kind, of = words[_NUMBER], words[_KIND], words[_OF]
    if number <= words[_ANSWERED] or kind == _NOTHING:
        return None
    if (words[_NUMBER], words[_KIND]) != (number, kind):
        return None  # another command writes: the next turn will see
    return Wish(number, kind, _signed(of))


def answer(board: Board, wish: Wish, answer: Answer) -> None:
    words = board.words
    words[_GRANTED], words[_RESULT] = answer.granted, answer.result
    board.set_text(_TEXT, _TEXT_END, answer.text)
    words[_ANSWERED] = wish.number


# --- in a command -------------------------------------------------------------------------------


def ask(path: Path, kind: Kind, of: int = 0, patience: float | None = 10.0) -> Answer:
    """Wish for something of the server whose board is ``path``, and wait for its answer.

    ``patience`` in seconds; None: as long as the server runs. Raises Unanswered, and OSError
    when the board cannot be written.
    """
    deadline = None if patience is None else time.monotonic() + patience
    with _opened(path, deadline) as board:
        words = board.words
        number = max(words[_NUMBER], words[_ANSWERED]) + 1
        words[_KIND] = _NOTHING
        words[_OF], words[_NUMBER] = of % _SIGN, number
        words[_KIND] = kind
        try:
            _wait(board, number, deadline)
        except BaseException:
            words[_KIND] = _NOTHING  # nobody waits for it any more
            raise
        return Answer(bool(words[_GRANTED]), board.text(_TEXT, _TEXT_END), words[_RESULT])


@contextmanager
def _opened(path: Path, deadline: float | None) -> Iterator[Board]:
    with path.open("r+b") as file:
        while not _lock(file.fileno()):
            _pause(deadline, "another command waits for an answer")
        yield Board(mmap.mmap(file.fileno(), 0), path)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(board: Board, number: int, deadline: float | None) -> None:
    master = board.master_pid
    try:
        # A turn of the arbiter's loop begins when a child ends, or seems to; it harms nobody.
        os.kill(master, signal.SIGCHLD)
    except (PermissionError, ProcessLookupError):
        pass  # the next turn begins within a second, or never
    while board.words[_ANSWERED] != number:
        if not is_alive(master):
            raise Unanswered("the server has ended")
        _pause(deadline, "the server does not answer")


def _pause(deadline: float | None, complaint: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Unanswered(complaint)
    time.sleep(_POLL_S)


def _signed(word: int) -> int:
    return word - _SIGN if word >= _SIGN >> 1 else word
