"""What clients see of a reload, and what a crash loop costs, with stock gunicorn and this pack.

    python -m benchmarks.rolls [--rounds 3] [--markdown]

Run it in the root of a checkout, with the test dependencies installed. Every round starts each
contender in turn: three workers, 16 keep-alive connections whose client pauses 10 ms between two
requests and never retries, and one HUP, after which the application takes two seconds to import.
Then, for ten seconds, workers die 0.3 s after they are ready.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.harness.clients.load import Load
from tests.harness.servers.deploy import APP, GOOD, deploy, slow
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import View

from . import machine, report

WORKERS = 3
CONNECTIONS = 16
IMPORT_S = 2.0
AFTER_S = 3.0
CRASHES_S = 10.0
PACK = "from gunicorn_cluster_ext.conf import *\n"
COMMON = f"workers = {WORKERS}\nkeepalive = 60\n"

T = TypeVar("T")

#: The configuration of each contender.
CONTENDERS = {
    "gthread, stock": 'worker_class = "gthread"\nthreads = 8\n',
    "gthread, this pack's arbiter": f'{PACK}worker_class = "gthread"\nthreads = 8\n',
    "Sticky": 'worker_class = "gunicorn_cluster_ext.Sticky"\nthreads = 8\n',
}


@dataclass
class Reload:
    requests: int
    errors: int
    closes: int
    told: int
    slowest: float  # seconds
    seconds: float  # until no old worker was left
    turn: float | None  # the arbiter's slowest, in seconds


def main() -> None:
    options = arguments()
    reloads: dict[str, list[Reload]] = {name: [] for name in CONTENDERS}
    boots: dict[str, list[int]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, config in CONTENDERS.items():
            reloads[name].append(run(COMMON + config, reload))
            boots[name].append(run(COMMON + config, crash_loop))
    show(reloads, boots, markdown=options.markdown)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolls")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


def run(config: str, measure: Callable[[Gunicorn], T]) -> T:
    with tempfile.TemporaryDirectory(prefix="gce-") as name:
        directory = Path(name)
        deploy(directory, GOOD)
        server = Gunicorn(directory, APP, config=config)
        try:
            server.wait_serving(WORKERS)
            return measure(server)
        finally:
            server.stop()


def reload(server: Gunicorn) -> Reload:
    deploy(server.directory, slow(IMPORT_S))
    old = set(server.worker_pids())
    with Load(server.address, CONNECTIONS, pause=0.01) as load:
        wait(lambda: load.report.answers > 500)
        begun = time.monotonic()
        server.signal(signal.SIGHUP)
        wait(lambda: not old & set(server.worker_pids()))
        seconds = time.monotonic() - begun
        wait(lambda: time.monotonic() - begun > seconds + AFTER_S)
    seen = load.report
    return Reload(
        seen.requests,
        len(seen.failures),
        seen.closes,
        seen.told_to_close,
        seen.slowest,
        seconds,
        slowest_turn(server),
    )


def slowest_turn(server: Gunicorn) -> float | None:
    if not list(server.directory.glob("gunicorn-cluster-*")):
        return None
    return View(server).slowest_turn


def crash_loop(server: Gunicorn) -> int:
    """Return the number of workers that are booted in ten seconds."""
    dying = "import os, threading\nthreading.Timer(0.3, os._exit, (7,)).start()\n"
    deploy(server.directory, dying + GOOD)
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    begun, before = time.monotonic(), booted(server)
    wait(lambda: time.monotonic() - begun > CRASHES_S)
    return booted(server) - before


def booted(server: Gunicorn) -> int:
    return server.log_text().count("Booting worker")


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not do what is measured")
        time.sleep(0.02)


COLUMNS = (
    "one HUP, 2 s import",
    "requests",
    "errors",
    "closed while idle",
    "`Connection: close`",
    "slowest request, ms",
    "until all are new, s",
    "slowest turn of the arbiter, ms",
    "boots in 10 s of crashes",
)


def show(reloads: dict[str, list[Reload]], boots: dict[str, list[int]], *, markdown: bool) -> None:
    rows = [row(name, runs, boots[name]) for name, runs in reloads.items()]
    about = machine.describe()
    if markdown:
        print(report.markdown_list(about), "", sep="\n")
        print(report.markdown_table("Reloads and crashes", COLUMNS, rows))
    else:
        print(report.text_list(about), "", sep="\n")
        print(report.text_table("Reloads and crashes", COLUMNS, rows))


def row(name: str, runs: list[Reload], boots: list[int]) -> tuple[str, ...]:
    """Return sums of what must not happen, and medians of the rest."""
    turns = [each.turn for each in runs if each.turn is not None]
    return (
        name,
        f"{sum(each.requests for each in runs)}",
        f"{sum(each.errors for each in runs)}",
        f"{sum(each.closes for each in runs)}",
        f"{sum(each.told for each in runs)}",
        f"{max(each.slowest for each in runs) * 1e3:.0f}",
        f"{statistics.median(each.seconds for each in runs):.1f}",
        f"{max(turns) * 1e3:.0f}" if turns else "-",
        f"{statistics.median(boots):.0f}",
    )


if __name__ == "__main__":
    main()
