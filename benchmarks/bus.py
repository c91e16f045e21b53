"""Messages from one worker to three others: the bus, and Redis pub/sub.

    python -m benchmarks.bus [--rounds 9] [--messages 5000] [--markdown]

Run it in the root of a checkout, with the test dependencies, ``hiredis`` installed, and
redis-server. It starts a Redis and a gunicorn with four workers, on loopback and in a private
directory; see benchmarks/bus_app.py for what the workers do.

*Throughput*: one worker sends as fast as it can until the other three have received everything.
*One way*: it sends a message every two milliseconds; measured is the time from the call until a
subscriber is called, for all three (the machine's monotonic clock is the same in all processes).
*Round trip*: one of the three answers each message before the next is sent. In every round the
contenders are measured one right after the other, in the same processes; ratios are taken within a
round, then their median.

At the end one of the three is stopped (SIGSTOP) while messages of 60 kB are sent; measured are the
longest call and the one-way time of messages to the other two.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import State
from gunicorn_cluster_ext.runtime.directory import directories
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

from . import machine, report
from .timings import Target, Timings, show, versions

ROOT = Path(__file__).resolve().parent.parent
BUS, REDIS, REDIS_UNIX = "bus", "redis", "redis-unix"
NAMES = {BUS: "bus", REDIS: "Redis over TCP", REDIS_UNIX: "Redis over a Unix socket"}
WORKERS = 4
#: Message sizes in bytes, each with the factor by which fewer messages are sent.
SIZES = {100: 1, 10_000: 5, 300_000: 50}
PACED, PAUSE_S = 300, 0.002
BACK = 1_000
DELAYS = ("p50 one way", "p99 one way", "p50 round trip", "p99 round trip")
#: While one receiver is stopped: more than the publisher keeps for it.
STOPPED_SIZE, STOPPED_COUNT, STOPPED_PAUSE_S = 60_000, 400, 0.005
CONFIG = f"""\
worker_class = "gunicorn_cluster_ext.Sticky"
workers = {WORKERS}
threads = 4
timeout = 120
"""
TARGETS = (
    Target(
        "throughput, of Redis over TCP",
        (REDIS, "per message, 100 B"),
        (BUS, "per message, 100 B"),
        3,
    ),
    Target("p50 one way, Redis over TCP", (REDIS, DELAYS[0]), (BUS, DELAYS[0]), 3),
    Target("p50 round trip, Redis over TCP", (REDIS, DELAYS[2]), (BUS, DELAYS[2]), 3),
)


def main() -> int:
    options = arguments()
    with servers() as (server, board):
        timings = Timings()
        for number in range(options.rounds):
            print(f"round {number + 1}", file=sys.stderr)
            one_round(server, timings, options.messages)
        stopped = while_one_is_stopped(server, board)
    print(as_report(timings, stopped, options))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--messages", type=int, default=5_000, help="messages of 100 bytes in each round"
    )
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


@contextmanager
def servers() -> Iterator[tuple[Gunicorn, Board]]:
    with tempfile.TemporaryDirectory(prefix="gce-") as name:
        directory = Path(name)
        redis = Redis(directory)
        try:
            redis.wait_ready()
            env = {
                "PYTHONPATH": str(ROOT),
                "REDIS_URL": redis.url,
                "REDIS_UNIX_URL": redis.unix_url,
            }
            server = Gunicorn(directory, "benchmarks.bus_app:app", config=CONFIG, env=env)
            try:
                server.wait_listening()
                yield server, wait_until(lambda: board_of(directory), 30, "four workers")
            finally:
                server.stop()
        finally:
            redis.stop()


def board_of(directory: Path) -> Board | None:
    """Return the server's board once all workers serve."""
    for _, path in directories(str(directory)):
        board = Board.attach(path / "board")
        if sum(row.state is State.READY for row in board.rows()) == WORKERS:
            return board
    return None


def ask(server: Gunicorn, worker: int, path: str, **query: Any) -> Any:
    words = "&".join(f"{name}={value}" for name, value in query.items())
    with server.connect(timeout=120) as connection:
        answer = connection.get(f"/{path}?{words}", cookie=f"gunicorn_worker={worker}")
    assert answer.status == 200, server.report(f"answered {answer.status}")
    found = answer.json()
    assert found["worker"] == worker, found
    return found["said"]


def one_round(server: Gunicorn, timings: Timings, messages: int) -> None:
    for size, fewer in SIZES.items():
        for way in NAMES:
            count = messages // fewer
            query = {"way": way, "count": count, "size": size, "listeners": WORKERS - 1}
            seconds = ask(server, 0, "flood", **query)
            timings.add((way, f"per message, {kind(size)}"), seconds / count * 1e6)
    for way in NAMES:
        ask(server, 0, "paced", way=way, count=PACED, size=100, pause=PAUSE_S)
        delays = list(chain(*(heard(server, way, worker) for worker in range(1, WORKERS))))
        assert len(delays) == PACED * (WORKERS - 1), len(delays)
        add_delays(timings, way, "one way", delays)
    for way in NAMES:
        times = ask(server, 0, "back", way=way, count=BACK, size=100)
        add_delays(timings, way, "round trip", times)


def add_delays(timings: Timings, way: str, what: str, times: list[float]) -> None:
    timings.add((way, f"p50 {what}"), median(times) * 1e6)
    timings.add((way, f"p99 {what}"), quantiles(times, n=100)[98] * 1e6)


def heard(server: Gunicorn, way: str, worker: int) -> list[float]:
    delays: list[float] = ask(server, worker, "heard", way=way)
    return delays


def kind(size: int) -> str:
    return f"{size} B" if size < 1_000 else f"{size // 1_000} kB"


def while_one_is_stopped(server: Gunicorn, board: Board) -> list[report.Row]:
    pid = next(row.words["pid"] for row in board.rows() if row.slot == WORKERS - 1)
    rows = []
    for way in NAMES:
        query = {"count": STOPPED_COUNT, "size": STOPPED_SIZE, "pause": STOPPED_PAUSE_S}
        os.kill(pid, signal.SIGSTOP)
        try:
            calls = ask(server, 0, "paced", way=way, **query)
            others = [heard(server, way, worker) for worker in (1, 2)]
        finally:
            os.kill(pid, signal.SIGCONT)
        delays = list(chain(*others))
        counts = " and ".join(str(len(each)) for each in others)
        p99 = quantiles(delays, n=100)[98]
        rows.append(
            (
                NAMES[way],
                f"{max(calls):.2f}",
                f"{median(calls) * 1e6:.0f}",
                counts,
                f"{median(delays) * 1e3:.2f}",
                f"{p99 * 1e3:.2f}",
            )
        )
    return rows


def as_report(timings: Timings, stopped: list[report.Row], options: argparse.Namespace) -> str:
    as_table = report.markdown_table if options.markdown else report.text_table
    as_list = report.markdown_list if options.markdown else report.text_list
    setup = (
        f"medians of {options.rounds} interleaved rounds; x: time per message as a multiple of the"
        " bus's"
    )
    return "\n\n".join(
        [
            as_list([*machine.describe(), versions(("redis", "hiredis")), setup]),
            as_table("messages per second to three workers", columns(), throughput(timings)),
            as_table(
                "One-way and round-trip time of 100 B, at 500 a second", TIMES, delays(timings)
            ),
            as_table(
                f"one of the three receivers stopped, {STOPPED_COUNT} messages of "
                f"{kind(STOPPED_SIZE)}",
                STOPPED,
                stopped,
            ),
            as_list(target.judge(timings) for target in TARGETS),
        ]
    )


TIMES = ("us", *(cell for what in DELAYS for cell in (what, "x")))
STOPPED = ("", "longest call, s", "median call, us", "received by the others", "p50, ms", "p99, ms")


def columns() -> report.Row:
    return ("", *(cell for size in SIZES for cell in (kind(size), "x")))


def throughput(timings: Timings) -> list[report.Row]:
    rows = []
    for way, name in NAMES.items():
        cells: list[str] = []
        for size in SIZES:
            what = f"per message, {kind(size)}"
            time = timings.median((way, what))
            cells += [
                show(time and 1e6 / time, ".0f"),
                show(timings.ratio((way, what), (BUS, what))),
            ]
        rows.append((name, *cells))
    return rows


def delays(timings: Timings) -> list[report.Row]:
    return [
        (
            name,
            *(
                cell
                for what in DELAYS
                for cell in (
                    show(timings.median((way, what)), ".0f"),
                    show(timings.ratio((way, what), (BUS, what))),
                )
            ),
        )
        for way, name in NAMES.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
