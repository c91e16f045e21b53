"""Which CPUs a run may use.

A round trip to a server takes about half as long when both ends happen to run on the same CPU, as
they do when there is a single client and another CPU is busy. With ``--cpus any`` the scheduler
chooses, which varies; ``one`` pins everything to one CPU, ``two`` pins the servers to another one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ALL = os.sched_getaffinity(0)
#: The CPUs of the measured processes, and those of the servers that they query.
CPUS = {
    "any": (_ALL, _ALL),
    "one": ({min(_ALL)}, {min(_ALL)}),
    "two": ({min(_ALL)}, {max(_ALL)}),
}


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpus", choices=CPUS, default="any", help="see benchmarks/cpus.py")


def use(choice: str) -> None:
    """Pin this process and the processes that it starts from now on, except servers."""
    os.sched_setaffinity(0, CPUS[choice][0])


@contextmanager
def for_servers(choice: str) -> Iterator[None]:
    """Pin processes that are started in this context as servers."""
    os.sched_setaffinity(0, CPUS[choice][1])
    try:
        yield
    finally:
        use(choice)
