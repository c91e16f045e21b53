"""Requests per second and CPU time of Sticky, stock gthread and two proxies.

    python -m benchmarks.sticky [--rounds 5] [--seconds 4] [--only WORD] [--calm PERCENT]
                                [--markdown]

Run it in the root of a checkout, with the package or at least its dependencies installed. It
needs wrk (and nginx and haproxy, for comparison) and takes about five minutes. It starts every
contender itself, on free loopback ports and in a private directory. Every round starts new servers
and measures the contenders of one workload one right after the other, so that they have the same
noisy neighbours; ratios are taken within a round, then their median.

CPU time is that of all server processes (including a proxy's, but not wrk's), divided by the number
of completed requests. The run fails, with status 1, if any request failed or was served by a worker
other than the one that its cookie names. If the machine cannot be kept quiet, --calm 5 repeats a
measurement while other programs use more than 5 % of the CPUs.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from . import machine, report
from .affinity import Route, routes, verify
from .contenders import ALL, THREADS, WORKERS, Contender, Server, which
from .failure import Failure
from .figures import COLUMNS, TARGETS, Cell, Figures, tables
from .load import CONNECTIONS, Sample, measure
from .workloads import WORKLOADS

CALM_TRIES = 10
CALM_PAUSE = 5.0

Running = dict[Contender, tuple[Server, list[Route]]]


def main() -> int:
    options = arguments()
    cells = chosen(options.only)
    # Otherwise the servers would outlive a run that is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    figures = Figures()
    stopped = False
    try:
        which("wrk")
        run(figures, cells, options)
    except Failure as failure:
        print(f"benchmark failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        stopped = True
    if figures.samples:
        print(as_report(figures, options, stopped))
    return 1 if stopped or figures.bad() else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sticky",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [each.key for each in WORKLOADS] + [each.name for each in ALL]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="seconds per measurement")
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="WORD",
        help=f"a workload or a contender, may be repeated: {', '.join(names)}",
    )
    parser.add_argument(
        "--calm",
        type=float,
        default=100,
        metavar="PERCENT",
        help=f"measure again, at most {CALM_TRIES} times, if others used more of the CPUs",
    )
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


def chosen(only: list[str] | None) -> list[Cell]:
    """Return the named workloads (or all) with the named contenders (or all)."""
    words = set(only or ())
    keys = words & {workload.key for workload in WORKLOADS}
    names = words & {contender.name for contender in ALL}
    return [
        (workload, contender)
        for workload in WORKLOADS
        if not keys or workload.key in keys
        for contender in workload.contenders
        if not names or contender.name in names
    ]


def run(figures: Figures, cells: list[Cell], options: argparse.Namespace) -> None:
    rounds, calm = options.rounds, options.calm / 100
    for number in range(rounds):
        with servers({contender for _, contender in cells}) as running:
            for workload, contender in in_order(cells, number):
                print(
                    f"round {number + 1}/{rounds}: {workload.key}, {contender.name}",
                    file=sys.stderr,
                )
                sample = in_calm(
                    partial(measure, workload.load, *running[contender], options.seconds), calm
                )
                figures.add((workload, contender), sample)


def in_calm(take: Callable[[], Sample], calm: float) -> Sample:
    """Return a sample during which others used at most ``calm``, or the calmest of several."""
    samples = [take()]
    while samples[-1].others > calm and not samples[-1].bad and len(samples) < CALM_TRIES:
        print(f"others used {samples[-1].others:.0%}: measuring again", file=sys.stderr)
        time.sleep(CALM_PAUSE)
        samples.append(take())
    return min(samples, key=lambda sample: (sample.bad == 0, sample.others))


def in_order(cells: list[Cell], number: int) -> list[Cell]:
    """Yield workload by workload; its contenders take turns in being first."""
    shuffled = random.Random(number).sample(cells, len(cells))
    return sorted(shuffled, key=lambda cell: WORKLOADS.index(cell[0]))


@contextmanager
def servers(contenders: set[Contender]) -> Iterator[Running]:
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        temporary.chmod(0o755)
        running: Running = {}
        for number, contender in enumerate(ALL):
            if contender not in contenders:
                continue
            server = contender.run(temporary / str(number), stack)
            its_routes = routes(contender, server)
            verify(server, its_routes)
            running[contender] = server, its_routes
        yield running


def as_report(figures: Figures, options: argparse.Namespace, stopped: bool) -> str:
    as_table = report.markdown_table if options.markdown else report.text_table
    as_list = report.markdown_list if options.markdown else report.text_list
    setup = (
        f"{WORKERS} workers x {THREADS} threads, wrk with {CONNECTIONS} connections,"
        f" medians of {options.rounds} interleaved rounds of {options.seconds} s"
        + (", STOPPED BEFORE THE END" if stopped else "")
    )
    parts = [as_list([*machine.describe(), setup, figures.others()])]
    parts += [as_table(title, COLUMNS, rows) for title, rows in tables(figures)]
    parts.append(as_list(target.judge(figures) for target in TARGETS))
    if bad := figures.bad():
        parts.append(as_list(["Requests failed or reached a wrong worker:", *bad]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
