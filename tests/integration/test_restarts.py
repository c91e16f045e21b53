"""Workers that end when nobody asked them to: how soon, and how often, they are replaced."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.deploy import APP, GOOD, slow
from tests.harness.servers.site import READY_MADE, Site, StartSite, failures, for_each
from tests.harness.view import PATIENCE_S, STICKY, View, Watch
from tests.harness.waiting import wait_until

KINDS = pytest.mark.parametrize(
    "kind", [STICKY, "gthread", "sync"], ids=["Sticky", "gthread", "sync"]
)


def boots(mended: Site) -> int:
    return len(mended.lines("Booting worker with pid"))


# --- the start --------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param("def app(:\n", 3, id="syntax error"),
        pytest.param("import no_such_module\n", 3, id="import error"),
        pytest.param("", 4, id="no application"),
    ],
)
def test_a_server_that_never_served_ends(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], kind: str, code: str, status: int
) -> None:
    """With gunicorn's own exit codes: an orchestrator is to see it."""
    directory = new_directory()
    (directory / "deployed.py").write_text(code)
    config = f"{READY_MADE}worker_class = {kind!r}\nworkers = 2\n"
    server = gunicorn(APP, directory=directory, config=config, wait=False)
    assert server.wait_exit(PATIENCE_S) == status
    assert "Traceback" not in server.log_text().rpartition("Worker exiting")[2]


@KINDS
def test_a_worker_that_boots_is_not_timed_out(site: StartSite, kind: str) -> None:
    """`timeout` is for requests."""
    mended = site(code=slow(2.5), worker_class=kind, workers=2, timeout=1)
    assert boots(mended) == 2
    assert set(mended.view.generations().values()) == {1}


def test_a_start_that_hangs_is_tried_again(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    directory = new_directory()
    module = directory / "deployed.py"
    module.write_text("import time\ntime.sleep(3600)\n")
    config = "workers = 2\ncluster_startup_timeout = 1\ncluster_restart_delay = 0.1\n"
    server = gunicorn(APP, "-k", STICKY, directory=directory, config=config, wait=False)
    complaint = "did not become ready within 1 s (cluster_startup_timeout)"
    server.wait_for(lambda: complaint in server.log_text(), PATIENCE_S, "a complaint")
    module.write_text(GOOD)
    View(server).wait_slots(2)
    assert server.get("/").status == 200


# --- one that ends -------------------------------------------------------------------------------


def kill(mended: Site, slot: int, number: int = signal.SIGKILL) -> int:
    """Send the worker a signal, and wait for its replacement."""
    pid, generation = mended.view.pids()[slot], mended.view.generations()[slot]
    os.kill(pid, number)
    mended.view.wait_generation(slot, generation + 1)
    return pid


def test_exits_are_logged_in_words(site: StartSite) -> None:
    mended = site(cluster_restart_delay=0)
    pid = kill(mended, 0)
    (line,) = mended.lines("SIGKILL")
    assert str(pid) in line and "worker 0" in line.lower()
    pid = kill(mended, 1, signal.SIGTERM)
    reason = f"Worker 1 (pid:{pid}) finished (it received a signal)"
    wait_until(lambda: mended.lines(reason), PATIENCE_S, "the reason in the log")


@pytest.mark.parametrize("kind", [STICKY, "sync"], ids=["Sticky", "sync"])
def test_a_worker_that_hangs_is_replaced(site: StartSite, kind: str) -> None:
    """Gunicorn's own `timeout`, as far as its own words go, is a reason as well."""
    mended = site(worker_class=kind, workers=1, timeout=1)
    with mended.server.connect() as connection:
        if kind == STICKY:
            os.kill(mended.pids[0], signal.SIGSTOP)
        else:
            connection.send(request_bytes("GET", "/?sleep=60"))
        assert mended.view.wait_generation(0, 2) != mended.pids[0]
    lines = [line for line in mended.lines("timeout") if str(mended.pids[0]) in line]
    assert any("worker 0" in line.lower() for line in lines), lines
    assert mended.server.get("/").status == 200


def test_the_first_exit_of_a_long_lived_worker_is_mended_at_once(site: StartSite) -> None:
    mended = site(cluster_min_uptime=1, cluster_restart_delay=600, cluster_restart_delay_max=600)
    ready = time.monotonic()
    wait_until(lambda: time.monotonic() - ready > 1.2, PATIENCE_S, "a long life")
    kill(mended, 1)
    mended.view.wait_slots(3)
    # This one had a short life.
    os.kill(mended.view.pids()[1], signal.SIGKILL)
    wait_until(lambda: len(mended.view.slots()) == 2, PATIENCE_S, "its end")
    kill(mended, 2)
    assert boots(mended) == 5
    assert sorted(mended.view.pids()) == [0, 2]


def test_only_unexpected_exits_count(site: StartSite) -> None:
    """Not what an operator asks for, not recycling, not rolls. Then one does, and one too many."""
    mended = site(
        cluster_restart_delay=0, cluster_restart_limit="1/60", cluster_restart_policy="halt"
    )
    for slot in (0, 1, 2, 0):
        kill(mended, slot, signal.SIGTERM)
        mended.view.wait_slots(3)
    mended.server.signal(signal.SIGTTIN)
    mended.view.wait_slots(4)
    mended.server.signal(signal.SIGTTOU)
    mended.view.wait_slots(3)
    mended.roll()
    mended.view.wait_slots(3)
    kill(mended, 0)
    mended.view.wait_slots(3)
    os.kill(mended.view.pids()[1], signal.SIGKILL)
    assert mended.server.wait_exit(PATIENCE_S) == 1


# --- some that end again and again ----------------------------------------------------------------

WINDOW_S = 10


def test_workers_that_die_when_they_are_ready(site: StartSite) -> None:
    """Stock gunicorn boots 98 in these 10 s, and a healthy sibling is what suffers."""
    mended = site("crashing:app", workers=4)
    healthy = [request_bytes("GET", "/", {"Cookie": "gunicorn_worker=3"})]
    with mended.load(connections=8, request=healthy) as load:
        load.wait_more(100)
        before = boots(mended)
        (mended.directory / "doomed").write_text("0 1 2")
        wait_until(lambda: boots(mended) > before, PATIENCE_S, "the first replacement")
        begun, first = time.monotonic(), load.report.answers
        wait_until(lambda: time.monotonic() - begun > WINDOW_S, 2 * WINDOW_S, "the window")
        booted, answered = boots(mended) - before, load.report.answers - first
    assert 6 <= booted <= 30
    assert answered > 100
    assert load.report.complaints() == []
    assert mended.view.pids()[3] == mended.pids[3]
    (mended.directory / "doomed").unlink()
    mended.roll()
    mended.view.wait_slots(4)


@KINDS
def test_halt(site: StartSite, kind: str) -> None:
    mended = site(
        "crashing:app",
        worker_class=kind,
        cluster_restart_delay=0,
        cluster_restart_limit="5/60",
        cluster_restart_policy="halt",
    )
    (mended.directory / "doomed").write_text("0 1 2")
    assert mended.server.wait_exit(PATIENCE_S) == 1
    assert boots(mended) <= 3 + 6
    lines = mended.lines("ended unexpectedly within 60 s")
    assert lines and "[ERROR]" in lines[-1]


def test_without_halt_the_server_goes_on(site: StartSite) -> None:
    """And recovers by itself when the cause is gone."""
    mended = site(
        "crashing:app",
        cluster_restart_delay=0,
        cluster_restart_limit="5/60",
        cluster_restart_delay_max=1,
    )
    (mended.directory / "doomed").write_text("0 1 2")
    wait_until(lambda: boots(mended) > 12, PATIENCE_S, "more than the limit")
    (mended.directory / "doomed").unlink()
    mended.view.wait_slots(3)
    assert mended.server.get("/").status == 200


@pytest.mark.parametrize("kind", [STICKY, "gthread"], ids=["Sticky", "gthread"])
def test_a_recycled_worker_that_cannot_boot(site: StartSite, kind: str) -> None:
    """It stays until another can. Stock gunicorn ends the whole server."""
    mended = site(
        worker_class=kind,
        workers=2,
        max_requests=10,
        cluster_restart_delay=0.1,
        cluster_restart_delay_max=0.5,
    )
    mended.deploy("import no_such_module\n")
    with mended.load(connections=4, request=for_each(2)) as load, Watch(mended.view) as watch:
        wait_until(lambda: boots(mended) > 2 + 4, PATIENCE_S, "some that cannot boot")
        assert mended.view.pids() == mended.pids
        mended.deploy(GOOD)
        for slot in mended.pids:
            mended.view.wait_generation(slot, 2)
        load.wait_more(50)
    assert watch.fewest_serving == 2
    assert failures(load.report, kind) == []
    assert set(load.report.statuses) == {200}
    if kind == STICKY:
        assert load.report.complaints() == []
