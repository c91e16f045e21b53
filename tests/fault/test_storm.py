"""Workers are killed at random, and only what they were doing is lost."""

import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import Failure, Load
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

STORM_S = 30
INTERVAL_S = 0.2
WORKERS = 4
# Nobody waits longer for an answer, or for an error.
PATIENT_S = 5
# The kernel takes its time to end a process, and what comes meanwhile is lost with it.
ENDING_S = 0.1


@dataclass
class Storm:
    """Records when which process was killed."""

    choice: Random = field(default_factory=lambda: Random(3))
    kills: dict[int, float] = field(default_factory=dict)

    def strike(self, site: Site) -> None:
        serving = [pid for pid in site.view.pids().values() if pid not in self.kills]
        if serving:
            pid = self.choice.choice(serving)
            self.kills[pid] = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    def rage(self, site: Site, seconds: float) -> None:
        over = time.monotonic() + seconds
        while (begun := time.monotonic()) < over:
            self.strike(site)
            wait_until(lambda: time.monotonic() >= begun + INTERVAL_S, 1, "the next one")

    def explains(self, failure: Failure, where: list[int]) -> bool:
        """True if the process that executed the request was killed meanwhile; or any, if none did.

        A request may come to a process that is dead before it has begun with it.
        """
        kills = [self.kills[pid] for pid in where if pid in self.kills]
        if not where:
            kills = list(self.kills.values())
        return any(failure.sent - ENDING_S <= at <= failure.at for at in kills)


def request(number: int) -> bytes:
    """Return, in turn, a request for any worker, for a slot (soft), for a dead process (hard)."""
    slot = number // 3 % WORKERS
    target = f"/?id={number}&sleep=0.02"
    if number % 3 == 1:
        return request_bytes("GET", target, {"Cookie": f"gunicorn_worker={slot}"})
    if number % 3 == 2:
        target += f"&EIO=4&sid=abc.{slot}.1"
    return request_bytes("GET", target)


def begun(directory: Path) -> dict[int, list[int]]:
    """The processes in which each request was executed, as the application noted."""
    found = defaultdict(list)
    for line in (directory / "diary.txt").read_text().splitlines():
        what, number, pid = line.split()
        if what == "begun" and number != "-":
            found[int(number)].append(int(pid))
    return found


def test_a_storm(site: StartSite) -> None:
    served = site(
        "request_log:app", workers=WORKERS, cluster_restart_delay=0, cluster_restart_limit=""
    )
    storm = Storm()
    with Load(served.server.address, 16, 0.03, request, PATIENT_S) as load:
        storm.rage(served, STORM_S)
        pids = served.view.wait_slots(WORKERS)
    report = load.report
    assert len(storm.kills) > STORM_S / INTERVAL_S / 2
    assert report.answers > 50 * STORM_S and set(report.statuses) == {200}
    assert report.slowest < PATIENT_S
    check_only_victims(report.failures, storm, begun(served.directory))
    # All is well again.
    with Load(served.server.address) as after:
        wait_until(lambda: after.report.answers > 200, PATIENCE_S, "answers")
    assert after.report.complaints() == []
    assert served.view.pids() == pids


def check_only_victims(
    failures: list[Failure], storm: Storm, executed: dict[int, list[int]]
) -> None:
    """Check that each failed request was in a process that was killed, or had just reached it."""
    # Nobody retries here, so nothing is executed twice: what is queued is no more than queued.
    assert [number for number, where in executed.items() if len(where) > 1] == []
    for failure in failures:
        assert failure.kind != "no answer", failure
        assert storm.explains(failure, executed.get(failure.number, [])), failure
    # A connection dies with its process also when the request has just come, which is rare.
    victims = [failure for failure in failures if failure.number in executed]
    assert len(victims) > 3 * (len(failures) - len(victims))
