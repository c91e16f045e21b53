"""What a session adds to each request: ours, Flask-Session's, and Flask's signed cookie.

    python -m benchmarks.sessions [--rounds 15] [--seconds 0.1] [--cpus any] [--markdown]

Run it in the root of a checkout, with the test dependencies, ``flask-session`` and ``hiredis``
installed, and redis-server, which it starts on loopback. The applications are called in this
process, without a network except to Redis. Every request brings the cookie of a session with seven
entries, and does not touch it, reads two entries, or changes one.

In every round all contenders of one kind of request are measured one right after the other; ratios
are taken within a round, then their median. Round trips are the read events that Redis counts;
commands are those that it has executed, also in scripts. Times of round trips depend on ``--cpus``:
see benchmarks/cpus.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.harness.servers.redis import Redis

from . import cpus, machine, report
from .session_apps import (
    ALL,
    LEAN_RIVAL,
    OURS,
    RIVAL,
    Client,
    Contender,
    Place,
    client,
)
from .timings import Timings, microseconds, show, versions

CASES = ("untouched", "read", "written")
#: The allowed round trips to Redis: one to read, one to write.
TRIPS = {"untouched": 0, "read": 1, "written": 2}
COUNTED = 100
PACKAGES = ("flask", "flask-session", "redis", "hiredis", "lmdb")


@dataclass(frozen=True)
class Traffic:
    """Round trips and commands per request."""

    trips: float
    commands: dict[str, float]

    def __str__(self) -> str:
        named = (f"{_times(times)}{name}" for name, times in sorted(self.commands.items()))
        return f"{self.trips:g}" + (f": {', '.join(named)}" if self.commands else "")


def _times(times: float) -> str:
    return "" if times == 1 else f"{times:g} "


Traffics = dict[tuple[str, str], Traffic]


def main() -> int:
    options = arguments()
    timings = Timings()
    with place(options.cpus) as where:
        clients = dict(usable(where, timings))
        traffics = traffic_of(clients, where)
        for number in range(options.rounds):
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr)
            one_round(clients, timings, options.seconds)
    print(as_report(timings, traffics, options))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sessions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="seconds per measurement")
    cpus.add_option(parser)
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


@contextmanager
def place(choice: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="gce-") as name:
        with cpus.for_servers(choice):
            server = Redis(Path(name))
        try:
            server.wait_ready()
            yield Place(Path(name), server.url)
        finally:
            server.stop()


def usable(where: Place, timings: Timings) -> Iterator[tuple[Contender, Client]]:
    for contender in ALL:
        try:
            yield contender, client(contender, where)
        except Exception as error:  # one that does not work must not stop the others
            timings.failures[contender.name] = f"cannot be used: {error!r}"


def one_round(clients: dict[Contender, Client], timings: Timings, seconds: float) -> None:
    for case in CASES:
        for contender, its in clients.items():
            timings.add((contender.name, case), microseconds(its.get, [f"/{case}"], seconds))


# --- traffic to Redis -------------------------------------------------------------------------


def traffic_of(clients: dict[Contender, Client], where: Place) -> Traffics:
    with redis.Redis.from_url(where.redis) as watcher:
        return {
            (contender.name, case): traffic(watcher, its, case)
            for contender, its in clients.items()
            for case in CASES
        }


def traffic(watcher: redis.Redis, its: Client, case: str) -> Traffic:
    trips, commands = counts(watcher)
    for _ in range(COUNTED):
        its.get(f"/{case}")
    trips_then, commands_then = counts(watcher)
    made = {name: times - commands.get(name, 0) for name, times in commands_then.items()}
    return Traffic(
        # Without the watcher's own: its second query, and the first one of the second count.
        (trips_then - trips - 2) / COUNTED,
        {name: times / COUNTED for name, times in made.items() if times and name != "info"},
    )


def counts(watcher: redis.Redis) -> tuple[int, dict[str, int]]:
    trips = watcher.info("stats")["total_reads_processed"]
    found = watcher.info("commandstats")
    return trips, {name.partition("_")[2]: each["calls"] for name, each in found.items()}


# --- the report -------------------------------------------------------------------------------


def as_report(timings: Timings, traffics: Traffics, options: argparse.Namespace) -> str:
    as_table = report.markdown_table if options.markdown else report.text_table
    as_list = report.markdown_list if options.markdown else report.text_list
    setup = (
        f"medians of {options.rounds} interleaved rounds of {options.seconds:g} s, --cpus"
        f" {options.cpus};"
        " +: what the session adds to the same application without one"
    )
    asked = {name for name, case in traffics if traffics[name, case].trips > 0.1}
    parts = [
        as_list([*machine.describe(), versions(PACKAGES), setup]),
        as_table("time of a request in us", time_columns(), time_rows(timings)),
        as_table(
            "Redis round trips and commands per request",
            ("", *CASES),
            [(name, *(str(traffics[name, case]) for case in CASES)) for name in ordered(asked)],
        ),
        as_list([*timings.left_out(), *verdicts(timings, traffics)]),
    ]
    return "\n\n".join(parts)


def ordered(names: set[str]) -> list[str]:
    return [contender.name for contender in ALL if contender.name in names]


def time_columns() -> report.Row:
    return ("session", *(name for case in CASES for name in (case, "+")))


def time_rows(timings: Timings) -> list[report.Row]:
    return [
        (contender.name, *(cell for case in CASES for cell in times(timings, contender, case)))
        for contender in ALL
    ]


def times(timings: Timings, contender: Contender, case: str) -> tuple[str, str]:
    mine = timings.median((contender.name, case))
    added = timings.added((contender.name, case), (contender.base, case))
    return show(mine), "" if contender.name == contender.base else show(added)


def verdicts(timings: Timings, traffics: Traffics) -> Iterator[str]:
    for case in CASES:
        yield few_trips(traffics, case)
        for rival in (RIVAL, LEAN_RIVAL):
            yield less_time(timings, rival, case)


def few_trips(traffics: Traffics, case: str) -> str:
    title = f"{case}: round trips to Redis, {TRIPS[case]} at most"
    found = traffics.get((OURS.name, case))
    if found is None:
        return f"----  {title}: not measured"
    # Now and then an unchanged session is written to renew its time to live.
    word = "PASS" if found.trips <= TRIPS[case] + 1 / COUNTED else "FAIL"
    return f"{word}  {title}: {found.trips:g}"


def less_time(timings: Timings, rival: Contender, case: str) -> str:
    title = f"{case}: time of the request, of that with {rival.name}"
    got = timings.ratio((OURS.name, case), (rival.name, case))
    if got is None:
        return f"----  {title}: not measured"
    return f"{'PASS' if got < 1 else 'FAIL'}  {title}: x{got:.2f}, wanted less than x1"


if __name__ == "__main__":
    sys.exit(main())
