import os
import struct
from pathlib import Path
from threading import Timer

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gunicorn_cluster_ext import metrics
from gunicorn_cluster_ext.metrics import BoardCollector
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import (
    COUNTERS,
    DECISION_WORDS,
    Roll,
    RollState,
    State,
    Word,
)
from tests.harness.clients.scrape import Scrape


@pytest.fixture
def board() -> Board:
    board = Board.create(4)
    for slot, state in ((0, State.READY), (1, State.DRAINING), (2, State.BOOTING)):
        board.clear(slot * 2, generation=1, now=1)
        board.set(slot * 2, Word.STATE, state)
        board.beat(slot * 2)
        board.set(slot * 2, Word.THREADS, 4)
        board.set(slot * 2, Word.BUSY, slot + 1)
    return board


def scrape(board: Board | None) -> Scrape:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    return Scrape(generate_latest(registry).decode())


def test_whatever_is_counted_is_shown(board: Board) -> None:
    """A word that is new in COUNTERS needs a metric."""
    shown = {*metrics._WORKER_COUNTERS, *metrics._SERVER_COUNTERS, *DECISION_WORDS.values()}
    assert shown == set(COUNTERS)
    before = scrape(board)
    for word in COUNTERS:
        board.set(0, word, 17)
    after = scrape(board)
    changed = [each for each in after.counters() if after.samples[each] != before.samples[each]]
    assert len(changed) == len(COUNTERS)
    assert {after.samples[each] for each in changed} == {17}


def test_names_are_as_prometheus_wants_them(board: Board) -> None:
    for family in scrape(board).families:
        assert family.name.startswith("gunicorn_cluster_")
        assert family.documentation.endswith(".") and len(family.documentation) < 80
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name


def test_only_slots_that_were_used_have_series(board: Board) -> None:
    seen = scrape(board)
    assert set(seen.by("gunicorn_cluster_requests_total", "worker")) == {"0", "1", "2"}
    assert seen.by("gunicorn_cluster_worker_busy_threads", "worker") == {"0": 1, "1": 2, "2": 3}


def test_who_serves_decides_how_busy_the_server_is(board: Board) -> None:
    assert scrape(board).get("gunicorn_cluster_busy_ratio") == 1 / 4
    board.set(0, Word.STATE, State.DRAINING)
    with pytest.raises(KeyError):
        scrape(board).get("gunicorn_cluster_busy_ratio")


@pytest.mark.parametrize(
    ("state", "active"),
    [
        (RollState.NONE, 0),
        (RollState.ROLLING, 1),
        (RollState.OBSERVING, 1),
        (RollState.COMMITTED, 0),
        (RollState.FAILED, 0),
    ],
)
def test_how_the_roll_stands(board: Board, state: RollState, active: int) -> None:
    board.roll = Roll(state, 1, 2, 3, "")
    seen = scrape(board)
    assert seen.get("gunicorn_cluster_roll_in_progress") == active
    assert seen.get("gunicorn_cluster_roll_workers_replaced") == 2
    assert seen.get("gunicorn_cluster_roll_workers") == 3


def test_outside_a_worker_there_is_nothing_to_say() -> None:
    assert scrape(None).samples == {}


def test_a_board_that_is_attached_is_shown_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "board"
    board = Board.create(2, path)
    board.clear(0, generation=1, now=1)
    before = path.read_bytes()
    assert scrape(Board.attach(path)).by("gunicorn_cluster_workers", "state")["booting"] == 1
    assert path.read_bytes() == before


def test_a_file_that_is_being_made_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prometheus_client makes it, and gives it a size after that."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    path = tmp_path / "counter_4711-seat0.db"
    path.touch()
    grown = Timer(0.004, lambda: os.truncate(path, 65536))
    grown.start()
    assert list(metrics._MultiprocessFiles().collect()) == []
    grown.join()
    os.truncate(path, 0)
    with pytest.raises(struct.error):  # one that stays so was damaged
        list(metrics._MultiprocessFiles().collect())
