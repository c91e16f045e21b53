"""Each worker is asked by itself how it is; one that is not well is replaced."""

import os
import signal
import time
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from gunicorn_cluster_ext.runtime.board.layout import State
from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import NOTICED_S
from tests.harness.servers.site import StartSite
from tests.harness.view import EVERY_KIND, PATIENCE_S, Watch
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

HEALTH: dict[str, Any] = {
    "cluster_health_path": "/health",
    "cluster_health_interval": 0.3,
    "cluster_health_timeout": 1,
    "cluster_health_failures": 2,
}


def cookie(slot: int) -> dict[str, str]:
    return {"Cookie": f"gunicorn_worker={slot}"}


def test_a_worker_whose_threads_are_all_stuck(site: StartSite) -> None:
    """Its heartbeat goes on, so gunicorn's `timeout` sees nothing."""
    asked = site(threads=2, graceful_timeout=2, timeout=10, **HEALTH)
    siblings = [request_bytes("GET", "/", cookie(slot)) for slot in (0, 2)]
    with ExitStack() as stack:
        load = stack.enter_context(asked.load(connections=8, request=siblings))
        watch = stack.enter_context(Watch(asked.view))
        for _ in range(2):
            stuck = stack.enter_context(asked.server.connect(timeout=60))
            stuck.send(request_bytes("GET", "/?sleep=3600", cookie(1)))
        assert asked.view.wait_generation(1, 2) != asked.pids[1]
        wait_until(lambda: not psutil.pid_exists(asked.pids[1]), PATIENCE_S, "its end")
        load.wait_more()
        pids = asked.view.wait_slots(3)
    assert (pids[0], pids[2]) == (asked.pids[0], asked.pids[2])
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3
    assert [line for line in asked.lines("health") if "orker 1" in line]


@EVERY_KIND
def test_a_worker_that_says_that_it_is_ill(site: StartSite) -> None:
    asked = site("unhealthy:app", **HEALTH)
    with asked.load() as load, Watch(asked.view) as watch:
        load.wait_more()
        (asked.directory / "ill").write_text(str(asked.pids[1]))
        asked.view.wait_generation(1, 2)
        pids = asked.view.wait_slots(3)
        load.wait_more()
    assert (pids[0], pids[2]) == (asked.pids[0], asked.pids[2])
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3
    assert watch.most_active <= 4


def test_a_site_that_is_ill_altogether_goes_on(site: StartSite) -> None:
    """What is asked at /health may be a database: no new worker is better, so the old ones stay."""
    asked = site("unhealthy:app", **HEALTH)
    with asked.load() as load, Watch(asked.view) as watch:
        load.wait_more()
        (asked.directory / "ill").write_text("all")
        wait_until(
            lambda: len(asked.lines("Booting worker with pid")) >= 5,
            PATIENCE_S,
            "some that are no better",
        )
        load.wait_more()
        serving = {row.words["pid"] for row in asked.view.rows if row.state is State.READY}
        assert serving >= set(asked.pids.values())
        (asked.directory / "ill").unlink()
        asked.view.wait_slots(3)
        load.wait_more()
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3


@EVERY_KIND
def test_well_workers_stay(site: StartSite) -> None:
    """Some checks later nothing has happened, also not to one that failed a single check."""
    asked = site("unhealthy:app", **{**HEALTH, "cluster_health_failures": 1_000})
    (asked.directory / "ill").write_text(str(asked.pids[1]))
    begun = time.monotonic()
    with asked.load() as load:
        wait_until(lambda: time.monotonic() - begun > 2, PATIENCE_S, "some checks")
    assert load.report.complaints() == []
    assert asked.view.wait_slots(3) == asked.pids


def test_gunicorns_own_workers_are_not_asked(site: StartSite) -> None:
    asked = site("unhealthy:app", worker_class="gthread", **HEALTH)
    (asked.directory / "ill").write_text("all")
    (line,) = asked.lines("cluster_health_path")
    assert "[WARNING]" in line and "gthread" in line
    asked.roll()
    assert not set(asked.view.wait_slots(3).values()) & set(asked.pids.values())


@EVERY_KIND
def test_a_stopped_worker(site: StartSite) -> None:
    """It does not even take the question. `timeout` is not what ends it."""
    asked = site(graceful_timeout=1, timeout=600, **HEALTH)
    os.kill(asked.pids[1], signal.SIGSTOP)
    asked.view.wait_generation(1, 2)
    wait_until(lambda: not psutil.pid_exists(asked.pids[1]), PATIENCE_S, "its end")
    pids = asked.view.wait_slots(3)
    assert (pids[0], pids[2]) == (asked.pids[0], asked.pids[2])
