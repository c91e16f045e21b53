"""A command in this process, and an arbiter in a child that serves the same board."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime.board import control
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.control import NoReply, Reply, Request, RequestKind
from tests.harness.forks import spawn, status_of


@contextmanager
def arbiter(board: Board, decide: Callable[[Request], Reply]) -> Iterator[int]:
    """A process that looks at the board all the time."""

    def look() -> None:
        while True:
            request = control.pending(board)
            if request is not None:
                control.reply(board, request, decide(request))
            time.sleep(0.001)

    pid = spawn(look)
    board.words[4] = pid
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.create(2, tmp_path / "board")


def path(board: Board) -> Path:
    assert board.path is not None
    return board.path


def test_nothing_is_wished_for(board: Board) -> None:
    assert control.pending(board) is None


@pytest.mark.parametrize("of", [0, 3, -1, -(2**40)])
def test_a_wish_and_its_answer(board: Board, of: int) -> None:
    with arbiter(
        board, lambda request: Reply(True, f"{request.kind} of {request.argument}", request.number)
    ):
        for number in (1, 2, 3):
            reply = control.ask(path(board), RequestKind.SCALE_BY, of)
            assert reply == Reply(True, f"{RequestKind.SCALE_BY:d} of {of}", number)
    assert control.pending(board) is None


def test_a_refusal_is_cut_to_what_there_is_room_for(board: Board) -> None:
    with arbiter(board, lambda request: Reply(False, "ä" * 100)):
        assert control.ask(path(board), RequestKind.RESTART, 1) == Reply(False, "ä" * 40)


def test_a_wish_that_nobody_answers_is_withdrawn(board: Board) -> None:
    with pytest.raises(NoReply, match="does not reply"):
        control.ask(path(board), RequestKind.SCALE, 5, timeout=0.1)
    assert control.pending(board) is None
    with arbiter(board, lambda request: Reply(True, str(request.argument))):
        assert control.ask(path(board), RequestKind.SCALE, 6).text == "6"


def test_an_answer_that_comes_too_late_is_for_nobody_else(board: Board) -> None:
    """The first request takes longer than its command waits; the next command comes meanwhile."""

    def decide(request: Request) -> Reply:
        if request.argument == 5:
            time.sleep(1)
        return Reply(True, str(request.argument))

    with arbiter(board, decide):
        with pytest.raises(NoReply):
            control.ask(path(board), RequestKind.SCALE, 5, timeout=0.5)
        assert control.ask(path(board), RequestKind.SCALE, 6).text == "6"
        assert control.ask(path(board), RequestKind.SCALE, 7).text == "7"
    assert board.words[51] == 3


def test_a_server_that_dies_meanwhile(board: Board) -> None:
    pid = spawn(lambda: None)
    status_of(pid)
    board.words[4] = pid
    with pytest.raises(NoReply, match="has ended"):
        control.ask(path(board), RequestKind.ROLL, timeout=None)


def test_commands_take_turns(board: Board) -> None:
    with arbiter(board, lambda request: Reply(True, str(request.argument))):
        children = [spawn(partial(_many, path(board), first)) for first in (100, 200, 300)]
        assert [status_of(pid) for pid in children] == [0, 0, 0]
    assert board.words[48] == board.words[51] == 150


def _many(board: Path, first: int) -> None:
    for of in range(first, first + 50):
        assert control.ask(board, RequestKind.SCALE, of).text == str(of)


def test_one_that_has_to_wait_too_long(board: Board) -> None:
    pid = spawn(lambda: control.ask(path(board), RequestKind.SCALE, 1, timeout=60))
    try:
        deadline = time.monotonic() + 20
        while control.pending(board) is None:
            assert time.monotonic() < deadline
        with pytest.raises(NoReply, match="another command"):
            control.ask(path(board), RequestKind.SCALE, 2, timeout=0.1)
    finally:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
