"""Slots: which worker has which number, through deaths, signals and reloads."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.processes import has_ended
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

PRELOAD = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["load", "preload"])


def worker_of(server: Gunicorn, slot: int) -> Any:
    """Who answers to the cookie of `slot`."""
    return server.get("/", cookie=f"gunicorn_worker={slot}").json()


def test_slots_start_at_zero(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "5")
    view = View(server)
    pids = view.wait_slots(5, generation=1)
    for slot, pid in pids.items():
        who = worker_of(server, slot)
        assert (who["worker"], who["pid"]) == (slot, pid)


def test_the_command_line_sees_the_slots(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "2")
    pids = View(server).wait_slots(2)
    command = [sys.executable, "-m", "gunicorn_cluster_ext", "status", "--json", "--dir"]
    asked = subprocess.run(
        [*command, str(server.directory)], capture_output=True, text=True, check=True
    )
    status = json.loads(asked.stdout)
    assert status["master"] == server.master_pid
    assert {worker["id"]: worker["pid"] for worker in status["workers"]} == pids


@PRELOAD
def test_the_replacement_of_a_killed_worker_has_its_slot(
    gunicorn: StartGunicorn, preload: tuple[str, ...]
) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "3", *preload)
    view = View(server)
    before = view.wait_slots(3)
    os.kill(before[1], signal.SIGKILL)
    wait_until(lambda: view.pids().get(1, before[1]) != before[1], PATIENCE_S, "a new worker 1")
    after = view.wait_slots(3)
    assert (after[0], after[2]) == (before[0], before[2])
    assert view.generations() == {0: 1, 1: 2, 2: 1}
    assert worker_of(server, 1)["pid"] == after[1]


def test_several_killed_at_once(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "4")
    view = View(server)
    before = view.wait_slots(4)
    for slot in (3, 0, 2):
        os.kill(before[slot], signal.SIGKILL)
    wait_until(
        lambda: view.generations() == {0: 2, 1: 1, 2: 2, 3: 2}, PATIENCE_S, "three replacements"
    )
    assert view.wait_slots(4)[1] == before[1]


@PRELOAD
def test_ttin_and_ttou(gunicorn: StartGunicorn, preload: tuple[str, ...]) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "3", *preload)
    view = View(server)
    first = view.wait_slots(3)
    server.signal(signal.SIGTTIN)
    more = view.wait_slots(4)
    assert {slot: more[slot] for slot in first} == first
    assert worker_of(server, 3)["worker"] == 3

    server.signal(signal.SIGTTOU)
    assert view.wait_slots(3) == first
    server.signal(signal.SIGTTOU)
    assert view.wait_slots(2) == {0: first[0], 1: first[1]}
    assert worker_of(server, 3)["worker"] in (0, 1)

    server.signal(signal.SIGTTIN)
    assert view.wait_slots(3)[0] == first[0]
    assert view.generations() == {0: 1, 1: 1, 2: 2}


def test_the_last_worker_stays(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "1")
    view = View(server)
    first = view.wait_slots(1)
    server.signal(signal.SIGTTOU)
    # Two signals that wait together arrive in the order of their numbers: TTIN first.
    server.wait_for(lambda: "signal: ttou" in server.log_text(), PATIENCE_S, "TTOU")
    server.signal(signal.SIGTTIN)
    assert view.wait_slots(2)[0] == first[0]


@PRELOAD
def test_hup_renews_every_slot(gunicorn: StartGunicorn, preload: tuple[str, ...]) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "3", *preload)
    view = View(server)
    pids = view.wait_slots(3, generation=1)
    for generation in (2, 3):
        server.signal(signal.SIGHUP)
        renewed = view.wait_slots(3, generation=generation)
        assert not set(renewed.values()) & set(pids.values())
        pids = renewed
        for slot in pids:
            assert worker_of(server, slot)["pid"] == pids[slot]


def test_hup_keeps_what_ttin_added_out(gunicorn: StartGunicorn) -> None:
    """As with stock gunicorn, a reload starts what the configuration says."""
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "2")
    view = View(server)
    view.wait_slots(2)
    server.signal(signal.SIGTTIN)
    view.wait_slots(3)
    server.signal(signal.SIGHUP)
    view.wait_slots(2, generation=2)


def test_more_workers_than_slots_on_ttin(gunicorn: StartGunicorn) -> None:
    config = "cluster_slots = 3\nworkers = 2\n"
    server = gunicorn("whoami:app", "-k", STICKY, config=config)
    view = View(server)
    view.wait_slots(2)
    assert view.capacity == 3
    server.signal(signal.SIGTTIN)
    view.wait_slots(3)
    server.signal(signal.SIGTTIN)
    wait_until(lambda: "4 workers wanted" in server.log_text(), PATIENCE_S, "a refusal")
    assert "4 workers wanted, but there are 3 slots: set cluster_slots" in server.log_text()
    view.wait_slots(3)
    server.signal(signal.SIGTTOU)
    view.wait_slots(2)
    assert server.running()


def test_more_workers_than_slots_in_the_configuration(gunicorn: StartGunicorn) -> None:
    """What is asked for at the start counts: there are at least as many slots."""
    server = gunicorn("whoami:app", "-k", STICKY, config="cluster_slots = 2\nworkers = 4\n")
    view = View(server)
    view.wait_slots(4)
    assert view.capacity == 4


def test_the_configuration_counts_workers_anew_on_reload(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, config="workers = 2\ncluster_slots = 5\n")
    view = View(server)
    view.wait_slots(2, generation=1)

    server.config_path.write_text("workers = 4\ncluster_slots = 5\n")
    server.signal(signal.SIGHUP)
    view.wait_roll(1)
    view.wait_slots(4)
    assert view.generations() == {0: 2, 1: 2, 2: 1, 3: 1}

    server.config_path.write_text("workers = 9\ncluster_slots = 5\n")
    server.signal(signal.SIGHUP)
    view.wait_roll(2)
    view.wait_slots(5)
    assert "9 workers wanted, but there are 5 slots" in server.log_text()
    assert worker_of(server, 4)["worker"] == 4

    server.config_path.write_text("workers = 1\ncluster_slots = 5\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: view.target == 1, PATIENCE_S, "one worker wanted")
    view.wait_slots(1, generation=4)


def test_web_concurrency(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, env={"WEB_CONCURRENCY": "3"})
    View(server).wait_slots(3)


@pytest.mark.parametrize("slots", [2, 16])
def test_reloads_while_an_old_worker_does_not_end(gunicorn: StartGunicorn, slots: int) -> None:
    """Two processes hold a slot at most: the third reload needs the seat of the first."""
    config = f"cluster_slots = {slots}\nworkers = 2\ngraceful_timeout = 1\nthreads = 4\n"
    server = gunicorn("whoami:app", "-k", STICKY, config=config)
    view = View(server)
    stuck = view.wait_slots(2)[0]
    with server.connect(timeout=60) as busy:
        busy.send(b"GET /?sleep=30 HTTP/1.1\r\nHost: x\r\nCookie: gunicorn_worker=0\r\n\r\n")
        wait_until(lambda: view.slots()[0].words["busy"] == 1, PATIENCE_S, "a busy worker")
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: view.generations() == {0: 2, 1: 2}, PATIENCE_S, "the first reload")
        assert psutil.pid_exists(stuck)
        assert worker_of(server, 0)["pid"] == view.pids()[0]
        server.signal(signal.SIGHUP)
        view.wait_slots(2, generation=3)
        assert not psutil.pid_exists(stuck)
        assert busy.closed_by_peer()
    (line,) = [line for line in server.log_text().splitlines() if "did not finish" in line]
    assert f"(pid:{stuck})" in line
    for slot in (0, 1):
        assert worker_of(server, slot)["worker"] == slot


def test_where_no_directory_can_be_made(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    nowhere = new_directory() / "nowhere"
    server = gunicorn(
        "whoami:app", "-k", STICKY, "-w", "2", config=f"cluster_dir = {str(nowhere)!r}"
    )
    assert {worker_of(server, slot)["worker"] for slot in (0, 1)} <= {0, 1}
    lines = [
        line for line in server.log_text().splitlines() if "No directory for the board" in line
    ]
    assert len(lines) == 1
    wait_until(lambda: worker_of(server, 1)["worker"] == 1, PATIENCE_S, "worker 1")


def test_the_private_directory_is_private_and_goes(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "1")
    View(server).wait_slots(1)
    (made,) = server.directory.glob("gunicorn-cluster-*")
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made / "board").stat().st_mode & 0o777 == 0o600
    server.stop()
    assert not made.exists()


def test_what_a_killed_server_left_behind_is_removed(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    config = f"cluster_dir = {str(new_directory())!r}\n"
    first = gunicorn("whoami:app", "-k", STICKY, config=config)
    base = first.config_path.read_text().split("'")[1]
    first.kill()
    (left,) = Path(base).iterdir()
    second = gunicorn("whoami:app", "-k", STICKY, config=config)
    (made,) = Path(base).iterdir()
    assert made != left and str(second.pid) in made.name


def test_workers_end_when_their_server_is_killed(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "3", "--keep-alive", "60")
    pids = View(server).wait_slots(3)
    with server.connect() as idle:
        assert idle.get("/", cookie="gunicorn_worker=1").status == 200
        os.kill(server.pid, signal.SIGKILL)
        for pid in pids.values():
            wait_until(lambda pid=pid: has_ended(pid), PATIENCE_S, f"the end of {pid}")
        assert idle.closed_by_peer()


def test_usr2(gunicorn: StartGunicorn) -> None:
    """A second server takes over the listener; it has slots and inboxes of its own."""
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "2", "--pid", "server.pid")
    old = View(server).wait_slots(2)
    server.signal(signal.SIGUSR2)
    second = server.directory / "server.pid.2"
    wait_until(lambda: second.exists() and second.read_text().strip(), PATIENCE_S, "a second one")
    master = int(second.read_text())
    view = View(server, master)
    new = view.wait_slots(2)
    # Both serve, and each keeps to its own workers.
    for _ in range(8):
        with server.connect() as connection:
            pids = [
                connection.get("/", cookie=f"gunicorn_worker={slot}").json()["pid"]
                for slot in (0, 1, 0, 1)
            ]
        assert pids in ([old[0], old[1]] * 2, [new[0], new[1]] * 2)
    server.signal(signal.SIGTERM)
    server.wait_exit(PATIENCE_S)
    try:
        assert view.pids() == new
        for slot in (0, 1):
            assert worker_of(server, slot)["pid"] == new[slot]
    finally:
        os.kill(master, signal.SIGTERM)
    wait_until(lambda: has_ended(master), PATIENCE_S, "its end")
    assert not list(server.directory.glob("gunicorn-cluster-*"))
