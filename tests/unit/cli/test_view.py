"""The views of a snapshot. tests/integration/test_command_*.py test the commands."""

from typing import Any

import pytest

from gunicorn_cluster_ext.cli.snapshot import WAITING, Snapshot, Worker
from gunicorn_cluster_ext.cli.view import summary
from gunicorn_cluster_ext.cli.view.history import LENGTH, History, sparkline
from gunicorn_cluster_ext.cli.view.table import (
    COLUMNS,
    Column,
    amount,
    duration,
    fitted,
    rate,
    size,
    table,
)
from gunicorn_cluster_ext.runtime.board.exits import ExitCounts
from gunicorn_cluster_ext.runtime.board.layout import WORD_NAMES, Cause, Roll, RollState
from tests.harness.forks import in_fresh_interpreter
from tests.unit.runtime.test_server_info import INFO

NONE = ExitCounts(dict.fromkeys(Cause, 0), "", 0)


def worker(slot: int, generation: int = 1, cpu_time: float = 0.0, **words: int) -> Worker:
    every = dict.fromkeys(WORD_NAMES.values(), 0)
    return Worker(
        slot,
        2 * slot,
        "ready",
        {**every, "pid": 4711 + slot, "generation": generation, "threads": 8, **words},
        NONE,
        uptime=3700.0,
        memory=50 << 20,
        cpu_time=cpu_time,
        load=0.25,
    )


def snapshot(at: float, *workers: Worker, **fields: Any) -> Snapshot:
    roll = Roll(RollState.NONE, 0, 0, 0, "")
    return Snapshot(at, roll, 2, 16, 0, 0, False, list(workers))._replace(**fields)


def test_status_imports_little() -> None:
    """Importing any of these takes as long as all the rest of the command."""
    heavy = {"dataclasses", "gunicorn", "inspect", "msgspec", "rich", "tempfile"}
    code = (
        "import sys\n"
        "from gunicorn_cluster_ext import cli\n"
        "cli.main(['status', '--pid', '1'])\n"
        f"print(sorted(sys.modules.keys() & {heavy}))"
    )
    assert in_fresh_interpreter(code) == "[]"


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (59.9, "59s"),
        (61, "1m 01s"),
        (3_600, "1h 00m"),
        (86_399, "23h 59m"),
        (90_000, "1d 01h"),
        (10**8, "1157d 09h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(each << 20) for each in (0, 50, 9_999, 10_240)] == ["0M", "50M", "9999M", "10.0G"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9999"), (10_000, "10k"), (123_456_789, "123M"), (10**13, "10000G")],
)
def test_amounts(number: int, text: str) -> None:
    assert amount(number) == text


def test_rates() -> None:
    assert [rate(each) for each in (0, 0.04, 99.94, 100, 12_345)] == [
        "0.0",
        "0.0",
        "99.9",
        "100",
        "12k",
    ]


# --- table ------------------------------------------------------------------------------------


def test_without_a_terminal_all_columns_are_shown() -> None:
    shown = table([worker(0, busy=3, requests=12_345), worker(11)], None)
    titles, first, second = shown.lines()
    assert titles.split() == " ".join(column.title for column in COLUMNS).split()
    assert first.split()[:8] == ["0", "4711", "1", "ready", "1h", "01m", "3/8", "12k"]
    assert second.startswith("11")
    assert len({line.index(word) for line, word in ((first, "ready"), (second, "ready"))}) == 1


def test_a_slot_without_a_process() -> None:
    ended = ExitCounts({**NONE.counts, Cause.BOOT: 7}, "could not load the application", 5)
    row = table([Worker(3, 6, WAITING, {}, ended)], None).lines()[1]
    assert row.split(maxsplit=3) == ["3", WAITING, "7", "could not load the application"]


@pytest.mark.parametrize("width", range(9, 200, 7))
def test_a_table_is_never_wider_than_the_terminal(width: int) -> None:
    ended = ExitCounts(NONE.counts, "finished (max_requests: it has served 1000)", 5)
    shown = table([worker(0)._replace(exits=ended), worker(1)], width)
    assert max(map(len, shown.lines())) <= width


def test_the_least_important_columns_are_dropped_and_a_reason_is_cut() -> None:
    def column(title: str, rank: int, min_width: int = 0) -> Column:
        return Column(title, rank, lambda worker: "", min_width=min_width)

    first, second, reason = column("A", 0), column("B", 2), column("C", 1, min_width=4)
    widths = {first: 5, second: 5, reason: 40}
    assert fitted(widths, 100) == widths
    assert fitted(widths, 30) == {first: 5, second: 5, reason: 16}
    assert fitted(widths, 18) == {first: 5, second: 5, reason: 4}
    assert fitted(widths, 17) == {first: 5, reason: 10}
    assert fitted(widths, 10) == {first: 5}


# --- history ----------------------------------------------------------------------------------


def test_rate_and_load_since_the_previous_snapshot() -> None:
    history = History()
    history.add(snapshot(100.0, worker(0, requests=50, cpu_time=1.0)))
    (now,) = history.add(snapshot(102.0, worker(0, requests=90, cpu_time=1.5)))
    assert (now.rate, now.load) == (20.0, 0.25)


def test_a_new_process_counts_from_its_own_start() -> None:
    history = History()
    history.add(snapshot(100.0, worker(0, requests=50)))
    (new,) = history.add(snapshot(101.0, worker(0, generation=2, requests=3)._replace(rate=0.6)))
    assert new.rate == 0.6, "as the board says"
    gone = Worker(0, 0, WAITING, {}, NONE)
    assert history.add(snapshot(102.0, gone)) == [gone]


def test_the_sparkline_of_a_slot() -> None:
    history = History()
    for second in range(4):
        one = worker(0, requests=100 * second * second)
        history.add(snapshot(100.0 + second, one, worker(1, requests=second)))
    assert history.line(one, "0123456789") == "0259"
    assert history.line(worker(1), "0123456789") == "0000"
    for second in range(4, 60):
        history.add(snapshot(100.0 + second, one))
    assert history.line(one, "_#") == "_" * LENGTH


def test_a_sparkline_without_requests() -> None:
    assert sparkline([0.0, 0.0], 0.0, "ab") == "aa"


# --- summary ----------------------------------------------------------------------------------


def test_the_summary() -> None:
    seen = snapshot(0.0, worker(0), worker(1), recent_exits=3)
    assert summary.lines(99, INFO, seen, 1_065.0) == [
        "gunicorn 27.0.1, gunicorn-cluster-ext 1.0, Python 3.11.7, master 99, up 1m 05s",
        "app:app at http://127.0.0.1:8000, worker class Sticky, store embedded",
        "2 of 2 workers serve, 3 of 20 crashes in 60 s, no roll yet",
    ]


def test_the_summary_without_server_info() -> None:
    seen = snapshot(0.0, worker(0), stopping=True)
    assert summary.lines(99, None, seen, 0.0) == [
        "master 99",
        "the server is stopping, 1 of 2 workers serve, 0 recent crashes, no roll yet",
    ]


@pytest.mark.parametrize(
    ("roll", "words"),
    [
        (Roll(RollState.ROLLING, 2, 1, 4, ""), "roll 2: 1 of 4 replaced"),
        (Roll(RollState.OBSERVING, 2, 4, 4, ""), "roll 2: observing, 4 of 4 replaced"),
        (Roll(RollState.COMMITTED, 2, 4, 4, ""), "roll 2 committed"),
        (Roll(RollState.FAILED, 3, 0, 4, "worker 0 died"), "roll 3 failed: worker 0 died"),
    ],
)
def test_the_phrase_for_a_roll(roll: Roll, words: str) -> None:
    assert summary.describe_roll(roll) == words
