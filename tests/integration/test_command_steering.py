"""`gunicorn-cluster restart`, `scale` and `stop`, of real servers."""

import os
import signal
from functools import partial

import psutil
import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.command import Done, run_command
from tests.harness.servers.deploy import GOOD, slow
from tests.harness.servers.site import Site, StartSite, for_each
from tests.harness.view import PATIENCE_S, STICKY, Watch
from tests.harness.waiting import wait_until
from tests.integration.test_roll import NOTICED_S, wait_more

pytestmark = pytest.mark.one_gunicorn


def run(of: Site, *arguments: str) -> Done:
    return run_command(*arguments, "--dir", str(of.directory), directory=of.directory)


def refusal(done: Done) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


# --- restart --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [STICKY, "gthread", "sync"], ids=["Sticky", "gthread", "sync"])
def test_restart_one(site: StartSite, kind: str) -> None:
    """Its successor comes first, and nobody else is touched."""
    steered = site(worker_class=kind)
    steered.deploy(slow(0.5))  # so that there is something to see
    with Watch(steered.view) as watch:
        done = run(steered, "restart", "1")
    assert (done.returncode, done.stderr) == (0, "")
    pids = steered.view.wait_slots(3)
    assert done.stdout.startswith("Worker 1 was replaced in ")
    assert done.stdout.endswith(f" s, its pid is {pids[1]}\n")
    assert steered.view.generations() == {0: 1, 1: 2, 2: 1}
    assert (watch.fewest_serving, watch.most_active) == (3, 4)
    exits = partial(steered.lines, "(gunicorn-cluster restart)")
    wait_until(lambda: [line for line in exits() if "orker 1" in line], PATIENCE_S, "its exit")


def test_restart_costs_no_client_anything(site: StartSite) -> None:
    steered = site()
    with steered.load(request=for_each(3)) as load:
        wait_more(load)
        for slot in range(3):
            assert run(steered, "restart", str(slot)).returncode == 0
        wait_more(load)
    assert load.report.complaints(NOTICED_S) == []
    assert len(load.report.pids) == 6


def test_a_restart_that_fails(site: StartSite) -> None:
    """The old worker serves on, until there is a successor."""
    steered = site(cluster_restart_delay=0.5)
    steered.deploy("import no_such_module\n")
    said = refusal(run(steered, "restart", "2"))
    assert said == (
        "gunicorn-cluster: worker 2 could not load the application (exit code 3); "
        "the server will try again\n"
    )
    assert steered.view.pids() == steered.pids
    steered.deploy(GOOD)
    assert steered.view.wait_generation(2, 3) != steered.pids[2]


def test_restarts_that_cannot_be(site: StartSite) -> None:
    steered = site()
    for slot in ("3", "99", "-1"):
        assert refusal(run(steered, "restart", slot)) == (
            f"gunicorn-cluster: there is no worker {slot}\n"
        )
    steered.deploy(slow(2))
    steered.hup()
    steered.view.wait_roll(1, RollState.ROLLING)
    assert "a roll is under way" in refusal(run(steered, "restart", "0"))
    steered.view.wait_roll(1)


# --- scale ----------------------------------------------------------------------------------------


def test_scale(site: StartSite) -> None:
    steered = site()
    before = 3
    with steered.load() as load:
        for wanted, count in (("+1", 4), ("6", 6), ("-2", 4), ("2", 2), ("2", 2)):
            done = run(steered, "scale", wanted)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"{count} workers instead of {before}, after ")
            assert sorted(steered.view.pids()) == list(range(count))
            before = count
        wait_more(load)
    assert load.report.complaints(NOTICED_S) == []
    assert steered.view.wait_slots(2) == {slot: steered.pids[slot] for slot in range(2)}


def test_scales_that_cannot_be(site: StartSite) -> None:
    steered = site(cluster_slots=4)
    assert "there are 4 slots: set cluster_slots" in refusal(run(steered, "scale", "5"))
    assert "there are 4 slots" in refusal(run(steered, "scale", "+2"))
    for wanted in ("0", "-3"):
        assert "one worker at least" in refusal(run(steered, "scale", wanted))
    for wanted in ("many", "1.5", "+", "99999"):
        done = run(steered, "scale", wanted)
        assert done.returncode == 2
        assert "neither a number of workers nor +1 nor -1" in done.stderr
    assert steered.view.wait_slots(3) == steered.pids


def test_more_workers_that_fail(site: StartSite) -> None:
    steered = site()
    steered.deploy("import no_such_module\n")
    assert "could not load" in refusal(run(steered, "scale", "+1"))
    assert steered.view.pids() == steered.pids


def test_more_workers_that_take_long(site: StartSite) -> None:
    steered = site()
    steered.deploy(slow(3))
    said = refusal(run(steered, "scale", "+1", "--timeout", "0.5"))
    assert said == "gunicorn-cluster: 3 workers serve instead of 4, after 0.5 s\n"
    steered.view.wait_slots(4)


# --- stop -----------------------------------------------------------------------------------------


def test_stop(site: StartSite) -> None:
    steered = site()
    done = run(steered, "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Server {steered.server.pid} has ended, after ")
    assert steered.server.wait_exit(PATIENCE_S) == 0
    assert not any(psutil.pid_exists(pid) for pid in steered.pids.values())


def test_a_stop_that_takes_long(site: StartSite) -> None:
    steered = site(graceful_timeout=3)
    with steered.server.connect(timeout=60) as connection:
        connection.send(b"GET /?sleep=3600 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: steered.view.total("busy") == 1, PATIENCE_S, "a request in progress")
        said = refusal(run(steered, "stop", "--timeout", "0.5"))
        pid = steered.server.pid
        assert said == f"gunicorn-cluster: server {pid} still finishes after 0.5 s\n"
        assert steered.server.wait_exit(PATIENCE_S) == 0


# --- a server that does not do as it is told ------------------------------------------------------


def test_a_wish_of_a_server_that_hangs_is_withdrawn(site: StartSite) -> None:
    steered = site()
    os.kill(steered.server.pid, signal.SIGSTOP)
    try:
        said = refusal(run(steered, "scale", "+1"))
        assert said == f"gunicorn-cluster: server {steered.server.pid}: the server does not reply\n"
    finally:
        os.kill(steered.server.pid, signal.SIGCONT)
    assert run(steered, "scale", "3").stdout.startswith("3 workers instead of 3")
    assert steered.view.wait_slots(3) == steered.pids
