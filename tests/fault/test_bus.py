"""Workers that stop or die while others send them messages over the bus."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.servers.bus_site import (
    Start,
    StartBusSite,
    in_order,
    links,
    memory_files,
    read_chatter,
)
from tests.harness.servers.site import StartSite
from tests.harness.view import KINDS, PATIENCE_S, STICKY
from tests.harness.waiting import wait_until

KIND = pytest.mark.parametrize("kind", [*KINDS, "gevent"])
# As settings: long enough that gunicorn does not kill a worker that a test has stopped.
PATIENT = {"timeout": 120, "cluster_bus_timeout": 0.5}


@pytest.fixture
def start(site: StartSite) -> Start:
    return StartBusSite(site)


@pytest.fixture
def stop() -> Iterator[Callable[[int], None]]:
    """Stop processes (SIGSTOP); continue those that still live afterwards."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == "stopped", PATIENCE_S, "it to stop")

    yield stop
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


@KIND
def test_a_stopped_worker_holds_nobody_up_beyond_the_bound(
    start: Start, stop: Callable[[int], None], kind: str
) -> None:
    """50 MB go to three workers, of which one reads nothing until it is continued."""
    bus_site = start(kind, workers=4, **PATIENT)
    teller, stopped, *others = bus_site.pids
    stop(stopped)
    sizes = ",".join(["60000"] * 9 + ["300000"])
    told = bus_site.ask(teller, "tell", sizes=sizes, threads=1, count=600)
    sent = told["sent"]["0"]
    assert told["seconds"] < 5
    assert sent == sorted(sent, reverse=True), "it got a message after it had lost one"
    kept, lost = sent.count(3), sent.count(2)
    assert kept and lost and kept + lost == 600
    for pid in others:
        heard = bus_site.wait_heard(pid, 600)
        assert in_order(heard) == {(teller, 0): list(range(600))}
    assert bus_site.view.total("bus_lost") == lost

    os.kill(stopped, signal.SIGCONT)
    heard = bus_site.wait_heard(stopped, kept)
    assert in_order(heard) == {(teller, 0): list(range(kept))}
    assert all(message.whole for message in heard)
    bus_site.server.wait_for(lambda: bus_site.site.lines("reads the bus again"), 10, "a line")
    (_,) = bus_site.site.lines("does not read the bus")
    (again,) = bus_site.site.lines("reads the bus again")
    assert f"{lost} messages to it were lost" in again
    again_sent = bus_site.ask(teller, "tell", sizes="10", threads=1)["sent"]["0"]
    assert again_sent == [3]
    assert bus_site.wait_heard(stopped, kept + 1)[-1].size == 10
    assert memory_files(teller) == 0


@KIND
def test_a_worker_that_waits_for_a_stopped_one_serves_others_meanwhile(
    start: Start, stop: Callable[[int], None], kind: str
) -> None:
    bus_site = start(kind, workers=2, timeout=120, cluster_bus_timeout=2)
    teller, stopped = (bus_site.view.pids()[slot] for slot in (0, 1))
    stop(stopped)
    sizes = ",".join(["60000"] * 300)
    with bus_site.server.connect() as connection:
        begun = time.monotonic()
        target = f"/tell?sizes={sizes}&threads=1"
        connection.send(request_bytes("GET", target, {"Cookie": "gunicorn_worker=0"}))
        answered = 0
        while time.monotonic() - begun < 1.5:
            if bus_site.ask(teller, "plain") == "plain":
                answered += 1
        answer = connection.answer().json()
        seconds = time.monotonic() - begun
    assert answer["pid"] == teller
    assert 0 in answer["said"]["sent"]["0"] and seconds >= 2
    assert answered > 20


@KIND
def test_a_worker_that_is_killed_harms_nobody(start: Start, kind: str) -> None:
    bus_site = start(kind, "chatter", cluster_restart_delay=0)
    first = bus_site.pids
    bus_site.wait_talking(first)
    open_before = {pid: len(links(pid)) for pid in first}
    survivor = first[2]
    killed = []
    for _ in range(3):
        slot, victim = next(each for each in bus_site.view.pids().items() if each[1] != survivor)
        killed.append(victim)
        generation = bus_site.view.generations()[slot]
        os.kill(victim, signal.SIGKILL)
        bus_site.view.wait_generation(slot, generation + 1)
        bus_site.wait_listening(3)
        bus_site.wait_talking(bus_site.pids)
    last = bus_site.pids
    assert not set(killed) & set(last) and survivor in last
    settled = open_before[survivor] + 3
    wait_until(lambda: len(links(survivor)) <= settled, PATIENCE_S, "sockets of the dead to go")
    (directory,) = bus_site.site.directory.glob("gunicorn-cluster-*")
    assert len(list(directory.glob("bus-*"))) == 3
    assert bus_site.view.total("bus_lost") == 0
    bus_site.server.stop()

    told = read_chatter(bus_site.site.directory)
    for pid, chatter in told.items():
        for sender, numbers in chatter.heard.items():
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), (pid, sender)
            if told[sender].begins > chatter.listens:
                assert numbers[0] == 0, (pid, sender)
            if pid in last and sender in killed:
                assert numbers[-1] - told[sender].said in (0, 1), (pid, sender)


def test_when_the_arbiter_is_killed_nothing_of_the_bus_is_left(
    start: Start, new_directory: Callable[[], Path]
) -> None:
    bus_site = start(STICKY)
    os.kill(bus_site.server.master_pid, signal.SIGKILL)
    bus_site.server.wait_exit(10)
    (directory,) = bus_site.site.directory.glob("gunicorn-cluster-*")
    wait_until(lambda: not list(directory.glob("bus-*")), PATIENCE_S, "the end of all sockets")
