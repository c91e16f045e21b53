"""The bus between real workers of every class."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gunicorn_cluster_ext import bus
from tests.harness.programs import StartGunicorn
from tests.harness.servers.bus_site import (
    BusSite,
    Start,
    StartBusSite,
    in_order,
    links,
    memory_files,
    read_chatter,
)
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.site import StartSite
from tests.harness.view import KINDS, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

STOCK = ("gthread", "sync", "gevent", "asgi")
#: Small and large ones mix.
SIZES = (0, 300_000, 1, 60_000, 1_000, 70_000, 20)


@pytest.fixture
def start(site: StartSite) -> Start:
    return StartBusSite(site)


@pytest.mark.parametrize("kind", [*KINDS, *STOCK])
def test_every_message_comes_to_every_other_worker_once_and_in_order(
    start: Start, kind: str
) -> None:
    bus_site = start(kind, workers=4)
    sizes, threads = ",".join(map(str, SIZES)), 3
    for pid in bus_site.pids:
        told = bus_site.ask(pid, "tell", sizes=sizes, threads=threads, count=70)
        assert {count for sent in told["sent"].values() for count in sent} == {3}
    for pid in bus_site.pids:
        heard = bus_site.wait_heard(pid, 3 * threads * 70)
        assert all(message.whole for message in heard)
        assert {message.size for message in heard} == set(SIZES)
        others = {(other, n) for other in bus_site.pids if other != pid for n in range(threads)}
        assert in_order(heard) == {sender: list(range(70)) for sender in others}
    assert bus_site.view.total("bus_sent") == bus_site.view.total("bus_received") == 4 * 9 * 70
    assert bus_site.view.total("bus_lost") == 0


@pytest.mark.parametrize("kind", [STICKY, "gevent", "asgi"])
def test_20_mb_in_one_message(start: Start, kind: str) -> None:
    bus_site = start(kind)
    teller, *others = bus_site.pids
    bus_site.ask(teller, "tell", sizes="20000000,1,20000000", threads=1)
    for pid in others:
        heard = bus_site.wait_heard(pid, 3)
        assert [message.size for message in heard] == [20_000_000, 1, 20_000_000]
        assert all(message.whole for message in heard)
        wait_until(lambda pid=pid: memory_files(pid) == 0, PATIENCE_S, "an end of all files")
    wait_until(lambda: memory_files(teller) == 0, PATIENCE_S, "an end of all files")


# --- rolls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "gevent"])
def test_in_a_roll_old_and_new_hear_each_other_and_lose_nothing(start: Start, kind: str) -> None:
    bus_site = start(kind, "chatter")
    old = bus_site.pids
    bus_site.wait_talking(old)
    bus_site.site.roll()
    new = sorted(bus_site.view.wait_slots(3, generation=2).values())
    bus_site.wait_listening(3)
    bus_site.wait_talking(new)
    lost = bus_site.view.total("bus_lost")
    bus_site.server.stop()

    told = read_chatter(bus_site.site.directory)
    assert set(told) == {*old, *new}
    for pid, chatter in told.items():
        for sender, numbers in chatter.heard.items():
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), (pid, sender)
            if told[sender].begins > chatter.listens:
                assert numbers[0] == 0, (pid, sender)
            if pid in new and sender in old:
                # The sender went before: all that it said was heard, and perhaps one more that it
                # had no time to write down.
                assert numbers[-1] - told[sender].said in (0, 1), (pid, sender)
        assert pid not in chatter.heard
    assert any(set(told[pid].heard) & set(new) for pid in old)
    assert lost == 0
    assert not list(bus_site.site.directory.glob("gunicorn-cluster-*"))


# --- what it costs, and where it runs -----------------------------------------------------------


def test_who_does_not_use_it_has_no_thread_no_socket_and_no_file(start: Start) -> None:
    """The application has imported it, and even published something that nobody hears."""
    bus_site = start(what="", threads=2)
    before = {pid: sorted(links(pid)) for pid in bus_site.pids}
    for pid in bus_site.pids:
        assert bus_site.ask(pid, "publish", channel="echo", message="x") == 0
        assert not any("bus" in name for name in bus_site.ask(pid, "threads"))
    # Connections of requests that were just answered may be open still.
    wait_until(
        lambda: {pid: sorted(links(pid)) for pid in bus_site.pids} == before, PATIENCE_S, "no more"
    )
    (directory,) = bus_site.site.directory.glob("gunicorn-cluster-*")
    assert not list(directory.glob("bus*"))


def test_a_gevent_worker_reads_it_in_a_greenlet(start: Start) -> None:
    """A thread would call subscribers beside the hub."""
    bus_site = start("gevent")
    teller, *others = bus_site.pids
    bus_site.ask(teller, "tell", sizes="10,300000", threads=1)
    for pid in others:
        bus_site.wait_heard(pid, 2)
    assert [psutil.Process(pid).num_threads() for pid in bus_site.pids] == [1, 1, 1]


def test_an_asgi_worker_reads_it_in_its_loop(start: Start) -> None:
    bus_site = start("asgi")
    teller, *others = bus_site.pids
    bus_site.ask(teller, "tell", sizes="10,300000", threads=1)
    for pid in others:
        bus_site.wait_heard(pid, 2)
        assert bus_site.ask(pid, "threads") == ["MainThread"]


def test_a_preloaded_application_subscribes_in_a_hook(site: StartSite) -> None:
    hooks = "def post_worker_init(worker):\n    import bus_echo\n    bus_echo.listen({})\n"
    bus_site = BusSite(site("bus_echo:app", hooks=hooks, preload_app=True))
    bus_site.wait_listening(3)
    teller, *others = bus_site.pids
    bus_site.ask(teller, "tell", sizes="10", threads=1)
    for pid in others:
        bus_site.wait_heard(pid, 1)


def test_who_has_ended_its_subscriptions_is_sent_nothing(start: Start) -> None:
    bus_site = start()
    teller, deaf, _ = bus_site.pids
    bus_site.ask(deaf, "end")
    assert bus_site.ask(teller, "publish", channel="echo", message="x" * 200) == 1
    bus_site.ask(deaf, "listen")
    assert bus_site.ask(teller, "publish", channel="other", message="x") == 2


def test_a_request_is_handed_over_at_once_while_the_bus_is_stuck(start: Start) -> None:
    """Its owner's subscriber sleeps, and megabytes wait behind that."""
    bus_site = start(workers=2)
    slots = bus_site.view.pids()
    bus_site.ask(slots[0], "publish", channel="slow", message="5")
    bus_site.ask(slots[0], "tell", sizes=",".join(["60000"] * 100), threads=1)
    begun, times = time.monotonic(), []
    handed = bus_site.view.total("handed_in")
    while bus_site.view.total("handed_in") - handed < 20:
        asked = time.monotonic()
        answer = bus_site.server.get("/", cookie="gunicorn_worker=1")
        times.append(time.monotonic() - asked)
        assert answer.json()["pid"] == slots[1]
    assert time.monotonic() - begun < 4, "the subscriber has slept"
    assert bus_site.view.slots()[1].words["bus_received"] < 10
    assert max(times) < 0.5


# --- processes that are no workers --------------------------------------------------------------


@contextmanager
def outside() -> Iterator[None]:
    """This process, which is no worker, may publish."""
    try:
        yield
    finally:
        bus._endpoints.choose(bus._Choice())


@pytest.mark.parametrize("kind", [STICKY, "asgi"])
def test_a_process_that_is_no_worker_publishes_to_all(start: Start, kind: str) -> None:
    bus_site = start(kind)
    message = b'[0, 0, 0, "d41d8cd98f00b204e9800998ecf8427e"]'.ljust(100)
    with outside():
        bus.connect(directory=str(bus_site.site.directory))
        assert bus.publish("echo", message) == 3
        assert bus.publish("echo", message + bytes(300_000)) == 3
    for pid in bus_site.pids:
        assert [each.size for each in bus_site.wait_heard(pid, 2)] == [0, 300_000]


def listening(view: View) -> int:
    return sum(bool(row.words["bus_listens"]) for row in view.rows)


def test_it_finds_the_server_that_was_started_anew(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    directory = new_directory()

    def start() -> Gunicorn:
        args = ("-k", STICKY, "-w", "2", "--pid", "pid")
        env = {"BUS_ECHO": "listen"}
        server = gunicorn("bus_echo:app", *args, directory=directory, env=env, wait=False)
        view = View(server)
        wait_until(lambda: listening(view) == 2, PATIENCE_S, "two that listen")
        return server

    first = start()
    with outside():
        bus.connect(pidfile=str(directory / "pid"), directory=str(directory))
        assert bus.publish("echo", b"x") == 2
        first.stop()
        with pytest.raises(bus.BusError, match="no pid in the pid file"):
            bus.publish("echo", b"x")
        start()
        assert bus.publish("echo", b"x") == 2


def test_it_says_so_when_several_servers_run(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    shared = new_directory()
    config = f"cluster_dir = {str(shared)!r}"
    args = ("-k", STICKY, "-w", "1")
    servers = [
        gunicorn("bus_echo:app", *args, config=config, env={"BUS_ECHO": "listen"}) for _ in range(2)
    ]
    one, other = sorted(server.master_pid for server in servers)
    with outside():
        with pytest.raises(bus.BusError, match=f"2 servers run: {one}, {other}; say which"):
            bus.connect(directory=str(shared))
        bus.connect(pid=one, directory=str(shared))
        assert bus.publish("echo", b"x") == 1
