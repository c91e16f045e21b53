"""Microseconds per operation of our stores, and of others that several workers can share.

    python -m benchmarks.stores [--rounds 15] [--seconds 0.1] [--processes 1 4] [--cpus any]
                                [--markdown]

Run it in the root of a checkout, with the test dependencies, ``diskcache``, ``cachelib`` and
``hiredis`` installed (redis-py uses hiredis if it is installed), and redis-server. It starts a
Redis and, for the dirty stash, a gunicorn, on loopback and in a private directory.

Values have 60 bytes and, where that is possible, a time to live; there are 1,000 keys. In every
round the contenders of one operation are measured one right after the other, in the same processes;
ratios are taken within a round, then their median. With several processes all do the same at the
same time, on the same keys; times are those that each of them sees. ``add`` is an atomic add of
a missing key, and its deletion. Times of round trips depend on ``--cpus``: see
benchmarks/cpus.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import mean

from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis

from . import cpus, machine, report
from .keepers import (
    ALL,
    DISKCACHE,
    EMBEDDED,
    OPERATIONS,
    PLAIN_REDIS,
    VALUE,
    Calls,
    Keeper,
    Place,
)
from .timings import Target, Timings, microseconds, show, versions

ROOT = Path(__file__).resolve().parent.parent
KEYS = 1_000
STARTED_S = 120.0
DIRTY = """\
workers = 1
dirty_workers = 1
dirty_apps = ["gunicorn.dirty.app:DirtyApp"]
"""
PACKAGES = ("redis", "hiredis", "lmdb", "diskcache", "cachelib")
TARGETS = (
    Target("get, redis-py over TCP", (PLAIN_REDIS.name, "get"), (EMBEDDED.name, "get"), 40),
    Target("get, diskcache", (DISKCACHE.name, "get"), (EMBEDDED.name, "get"), 5),
)

#: A time in microseconds, or why there is none; None if the store has no such operation.
Sample = float | str | None
#: For each round, the sample of each contender and operation.
Samples = list[dict[tuple[str, str], Sample]]


def main() -> int:
    options = arguments()
    with place(options.cpus) as where:
        timings = {n: measure(where, n, options) for n in options.processes}
    print(as_report(timings, options))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="seconds per measurement")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    cpus.add_option(parser)
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


@contextmanager
def place(choice: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="gce-") as name:
        directory = Path(name)
        with cpus.for_servers(choice):
            redis = Redis(directory)
            env = {"PYTHONPATH": str(ROOT)}
            server = Gunicorn(directory, "benchmarks.app:app", config=DIRTY, env=env)
        try:
            redis.wait_ready()
            server.wait_answering()
            yield Place(directory, redis.url, redis.unix_url, stash_of(server))
        finally:
            server.stop()
            redis.stop()


def stash_of(server: Gunicorn) -> str:
    found = re.search(r"Spawned dirty arbiter \(pid: \d+\) at (\S+)", server.log_text())
    assert found, server.report("does not say where its dirty arbiter listens")
    return found[1]


def measure(where: Place, processes: int, options: argparse.Namespace) -> Timings:
    print(f"{processes} at once", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, join, (barrier,)) as pool:
        jobs = [pool.submit(work, where, options.rounds, options.seconds) for _ in range(processes)]
        return merged([job.result() for job in jobs])


# --- in the measured processes ----------------------------------------------------------------

_together: Barrier


def join(barrier: Barrier) -> None:
    global _together
    _together = barrier


def work(where: Place, rounds: int, seconds: float) -> Samples:
    """Measure all rounds; the barrier also keeps this process from taking another's job."""
    opened = {keeper: usable(keeper, where) for keeper in ALL}
    samples = [one_round(opened, seconds) for _ in range(rounds)]
    for keeper, calls in opened.items():
        if isinstance(calls, Calls) and not holds_all(calls):
            # Some of the measured gets may have been misses.
            samples[-1][keeper.name, "get"] = "does not hold all that it was given"
    return samples


def usable(keeper: Keeper, where: Place) -> Calls | str:
    try:
        calls = keeper.open(where)
        for key in keys("get", calls):
            calls.set(key)
        return calls if holds_all(calls) else "does not give back what it was given"
    except Exception as error:  # one that does not work must not stop the others
        return f"cannot be used: {error!r}"


def holds_all(calls: Calls) -> bool:
    """Return True if all keys have their value; other processes write the same value meanwhile."""
    return all(calls.get(key) == VALUE for key in keys("get", calls))


def one_round(opened: dict[Keeper, Calls | str], seconds: float) -> dict[tuple[str, str], Sample]:
    samples: dict[tuple[str, str], Sample] = {}
    for operation in OPERATIONS:
        for keeper, calls in opened.items():
            _together.wait(STARTED_S)
            samples[keeper.name, operation] = sample(calls, operation, seconds)
    return samples


def sample(calls: Calls | str, operation: str, seconds: float) -> Sample:
    if isinstance(calls, str):
        return calls
    call = calls.of(operation)
    if call is None:
        return None
    try:
        return microseconds(call, keys(operation, calls), seconds)
    except Exception as error:
        return f"{operation} failed: {error!r}"


def keys(operation: str, calls: Calls) -> list[object]:
    """Return the keys; values, numbers and locks have separate ones, locks also per process."""
    prefix = {"add": f"add:{os.getpid()}", "incr": "incr"}.get(operation, "value")
    return [calls.key(f"{prefix}:{number:04}") for number in range(KEYS)]


# --- the report -------------------------------------------------------------------------------


def merged(all_samples: list[Samples]) -> Timings:
    """Return the mean over the processes, for each round."""
    timings = Timings()
    for rounds in zip(*all_samples, strict=True):
        for cell in rounds[0]:
            timings.add(cell, together([each[cell] for each in rounds]))
    return timings


def together(samples: list[Sample]) -> Sample:
    failed = [each for each in samples if isinstance(each, str)]
    times = [each for each in samples if isinstance(each, float)]
    return failed[0] if failed else mean(times) if times else None


def as_report(timings: dict[int, Timings], options: argparse.Namespace) -> str:
    as_table = report.markdown_table if options.markdown else report.text_table
    as_list = report.markdown_list if options.markdown else report.text_list
    setup = (
        f"{len(VALUE)}-byte values, {KEYS} keys, medians of {options.rounds} interleaved rounds"
        f" of {options.seconds:g} s, --cpus {options.cpus}; x: how many times the embedded store's"
    )
    parts = [as_list([*machine.describe(), versions(PACKAGES), setup])]
    for processes, its in timings.items():
        title = "one process" if processes == 1 else f"{processes} processes at once, each of them"
        parts.append(as_table(title, columns(), rows(its)))
        parts += [as_list(its.left_out())] if its.failures else []
    if alone := timings.get(1):
        parts.append(as_list(target.judge(alone) for target in TARGETS))
    return "\n\n".join(parts)


def columns() -> report.Row:
    return ("us per operation", *(name for each in OPERATIONS for name in (each, "x")))


def rows(timings: Timings) -> list[report.Row]:
    return [
        (keeper.name, *(cell for each in OPERATIONS for cell in figures(timings, keeper, each)))
        for keeper in ALL
    ]


def figures(timings: Timings, keeper: Keeper, operation: str) -> tuple[str, str]:
    cell, base = (keeper.name, operation), (EMBEDDED.name, operation)
    return show(timings.median(cell)), show(timings.ratio(cell, base))


if __name__ == "__main__":
    sys.exit(main())
