"""Which CPUs a run may use.

A round trip to a server takes about half as long when both ends happen to run on the same CPU, as
they do when there is one client only and another CPU is busy. The scheduler may choose
(``--cpus any``), which varies; ``one`` pins all to one CPU, ``two`` the servers to another one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ALL = os.sched_getaffinity(0)
#: Where the processes that are measured run, and the servers that they ask.
CPUS = {
    "any": (_ALL, _ALL),
    "one": ({min(_ALL)}, {min(_ALL)}),
    "two": ({min(_ALL)}, {max(_ALL)}),
}


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpus", choices=CPUS, default="any", help="see benchmarks/cpus.py")


def use(choice: str) -> None:
    """For this process, and those that it starts from now on, but for servers."""
    os.sched_setaffinity(0, CPUS[choice][0])


@contextmanager
def for_servers(choice: str) -> Iterator[None]:
    """What is started inside is a server."""
    os.sched_setaffinity(0, CPUS[choice][1])
    try:
        yield
    finally:
        use(choice)
