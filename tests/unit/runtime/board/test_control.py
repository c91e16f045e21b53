"""A command in this process, and a child in the part of the arbiter, which replies."""

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
from tests.harness.forks import repeated, spawn, status_of


@contextmanager
def arbiter(board: Board, decide: Callable[[Request], Reply]) -> Iterator[int]:
    """Run a process that polls the board for requests, and replies."""

    def look() -> None:
        request = control.pending(board)
        if request is not None:
            control.reply(board, request, decide(request))
        time.sleep(0.001)

    with repeated(look) as pid:
        board.words[4] = pid
        yield pid


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.create(2, tmp_path / "board")


def path(board: Board) -> Path:
    assert board.path is not None
    return board.path


def test_no_request_is_pending(board: Board) -> None:
    assert control.pending(board) is None


@pytest.mark.parametrize("of", [0, 3, -1, -(2**40)])
def test_a_request_and_its_reply(board: Board, of: int) -> None:
    with arbiter(
        board, lambda request: Reply(True, f"{request.kind} of {request.argument}", request.number)
    ):
        for number in (1, 2, 3):
            reply = control.ask(path(board), RequestKind.SCALE_BY, of)
            assert reply == Reply(True, f"{RequestKind.SCALE_BY:d} of {of}", number)
    assert control.pending(board) is None


def test_a_long_refusal_is_cut(board: Board) -> None:
    with arbiter(board, lambda request: Reply(False, "ä" * 100)):
        assert control.ask(path(board), RequestKind.RESTART, 1) == Reply(False, "ä" * 40)


def test_a_request_without_a_reply_is_withdrawn(board: Board) -> None:
    with pytest.raises(NoReply, match="does not reply"):
        control.ask(path(board), RequestKind.SCALE, 5, timeout=0.1)
    assert control.pending(board) is None
    with arbiter(board, lambda request: Reply(True, str(request.argument))):
        assert control.ask(path(board), RequestKind.SCALE, 6).text == "6"


def test_a_late_reply_is_not_for_the_next_request(board: Board) -> None:
    """The reply takes longer than the first command waits; then the next command asks."""

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


def test_a_server_that_dies_before_it_replies(board: Board) -> None:
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


def test_a_command_that_waits_too_long_for_another(board: Board) -> None:
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
