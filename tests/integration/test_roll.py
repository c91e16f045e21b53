"""HUP replaces worker after worker, and clients notice nothing."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psutil
import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from tests.harness.clients.callers import Caller, new_client, note
from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import NOTICED_S, Load
from tests.harness.programs import StartGunicorn
from tests.harness.servers.deploy import APP, GOOD, deploy, slow
from tests.harness.servers.site import Site, StartSite, failures
from tests.harness.view import EVERY_KIND, PATIENCE_S, STICKY, View, Watch
from tests.harness.waiting import wait_until

# A request may take no longer while workers are replaced.
SLOWEST_S = 0.5


def roll_with_a_slow_import(site: StartSite) -> float:
    """A roll under load, of which clients see nothing; how long the slowest request took."""
    rolled = site()
    rolled.deploy(slow(2))
    # With the cookies every worker has its share, however the kernel spreads the connections.
    anybodys = request_bytes("GET", "/")
    requests = [request_bytes("GET", "/", {"Cookie": f"gunicorn_worker={n}"}) for n in range(3)]
    load = rolled.load(connections=16, request=[anybodys, *requests])
    with load, Watch(rolled.view) as watch:
        load.wait_more()
        assert set(load.report.pids) == set(rolled.pids.values())
        roll = rolled.roll()
        load.wait_more()
        rolled.check_renewed(rolled.pids, generation=2)
    assert (roll.replaced, roll.total, roll.reason) == (3, 3, "")
    assert load.report.complaints() == []
    assert load.report.connections == 16
    # All the new ones have answered too.
    assert set(load.report.pids) == {*rolled.pids.values(), *rolled.view.pids().values()}
    assert (watch.fewest_serving, watch.most_active) == (3, 4)
    rolled.server.stop()
    return load.report.slowest


@EVERY_KIND
def test_a_roll_with_a_slow_import(site: StartSite) -> None:
    """Nothing may ever be lost; time is measured three times at most, for the machine's sake."""
    slowest: list[float] = []
    while not slowest or (min(slowest) >= SLOWEST_S and len(slowest) < 3):
        slowest.append(roll_with_a_slow_import(site))
    assert min(slowest) < SLOWEST_S, slowest


# For anybody, for a slot (soft), for a process that is soon gone (hard), and with a body (which
# the application must read, or gunicorn closes the connection).
MIXED = [
    request_bytes("GET", "/"),
    request_bytes("GET", "/", {"Cookie": "gunicorn_worker=0"}),
    request_bytes("GET", "/", {"Cookie": "gunicorn_worker=2"}),
    request_bytes("GET", "/?EIO=4&sid=abc.1.1"),
    request_bytes("POST", "/", body=b"x" * 100_000),
]


@pytest.mark.one_gunicorn
@EVERY_KIND
def test_ten_rolls_in_a_row(site: StartSite) -> None:
    rolled = site("echo:app")
    with rolled.load(connections=20, request=MIXED) as load, Watch(rolled.view) as watch:
        for _ in range(10):
            load.wait_more(50)
            rolled.roll()
        load.wait_more()
        rolled.check_renewed(rolled.pids, generation=11)
    assert load.report.complaints(NOTICED_S) == []
    assert load.report.connections == 20
    assert len(load.report.pids) > 20
    assert watch.fewest_serving == 3
    assert watch.most_active <= 4


@pytest.mark.one_gunicorn
@pytest.mark.parametrize(
    ("surge", "unavailable", "workers", "most", "fewest"),
    [
        pytest.param(2, 0, 4, 6, 4, id="surge 2"),
        pytest.param("50%", 0, 4, 6, 4, id="surge 50%"),
        pytest.param("100%", 0, 3, 6, 3, id="surge 100%"),
        pytest.param(1, 1, 4, 5, 3, id="surge 1, unavailable 1"),
    ],
)
def test_surge(
    site: StartSite,
    surge: int | str,
    unavailable: int,
    workers: int,
    most: int,
    fewest: int,
) -> None:
    """As many processes as are allowed boot together."""
    rolled = site(workers=workers, cluster_roll_surge=surge, cluster_roll_unavailable=unavailable)
    rolled.deploy(slow(1))
    with rolled.load() as load, Watch(rolled.view) as watch:
        rolled.roll()
        rolled.check_renewed(rolled.pids, generation=2)
    assert load.report.complaints(NOTICED_S) == []
    assert fewest <= watch.fewest_serving <= workers
    assert watch.most_booting >= min(2, most - workers)
    assert watch.most_active <= most


@pytest.mark.parametrize(
    ("unavailable", "fewest"),
    [pytest.param(1, 2, id="1"), pytest.param("34%", 2, id="34%"), pytest.param(2, 1, id="2")],
)
def test_without_surge(site: StartSite, unavailable: int | str, fewest: int) -> None:
    """For tight memory: never more processes than workers, those that drain included."""
    rolled = site(cluster_roll_surge=0, cluster_roll_unavailable=unavailable)
    with rolled.load() as load, Watch(rolled.view) as watch:
        load.wait_more()
        rolled.roll()
        rolled.check_renewed(rolled.pids, generation=2)
    assert load.report.complaints() == []
    assert watch.fewest_serving == fewest
    assert watch.most_processes == 3


@EVERY_KIND
def test_without_surge_a_process_that_drains_counts(site: StartSite) -> None:
    rolled = site(cluster_roll_surge=0, cluster_roll_unavailable=1)
    with rolled.server.connect() as busy, Watch(rolled.view) as watch:
        busy.send(b"GET /?sleep=1 HTTP/1.1\r\nHost: x\r\nCookie: gunicorn_worker=0\r\n\r\n")
        wait_until(lambda: rolled.view.total("busy") == 1, PATIENCE_S, "a busy worker")
        rolled.roll()
        assert busy.answer().json()["pid"] == rolled.pids[0]
        rolled.check_renewed(rolled.pids, generation=2)
    assert watch.fewest_serving == 2
    assert watch.most_processes == 3


@pytest.mark.one_gunicorn
@EVERY_KIND
def test_a_single_worker(site: StartSite) -> None:
    rolled = site(workers=1)
    rolled.deploy(slow(1))
    with rolled.load(connections=4) as load, Watch(rolled.view) as watch:
        load.wait_more(50)
        rolled.roll()
        load.wait_more(50)
        rolled.check_renewed(rolled.pids, generation=2)
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 1


@EVERY_KIND
def test_requests_in_progress_are_finished(site: StartSite) -> None:
    rolled = site()
    request = b"GET /?sleep=0.3 HTTP/1.1\r\nHost: x\r\n\r\n"
    with rolled.load(connections=12, request=[request]) as load:
        load.wait_more(24)
        rolled.roll()
        load.wait_more(24)
    assert load.report.complaints() == []
    assert load.report.connections == 12
    rolled.check_renewed(rolled.pids, generation=2)


def test_observation(site: StartSite) -> None:
    """The roll is over when the new workers have proved themselves."""
    rolled = site(cluster_roll_observe=1)
    rolled.hup()
    roll = rolled.view.wait_roll(1, RollState.OBSERVING)
    assert roll.replaced == 3
    observed = rolled.view.pids()
    rolled.view.wait_roll(1, RollState.COMMITTED)
    assert rolled.view.wait_slots(3, generation=2) == observed


@EVERY_KIND
def test_parked_until_the_roll_commits(site: StartSite) -> None:
    rolled = site(cluster_roll_rollback="full", cluster_roll_observe=1)
    with rolled.load() as load, Watch(rolled.view) as watch:
        load.wait_more()
        rolled.hup()
        rolled.view.wait_roll(1, RollState.OBSERVING)
        # They wait for the case that they are needed, and answer nothing.
        assert all(psutil.pid_exists(pid) for pid in rolled.pids.values())
        wait_until(lambda: new_only(rolled, load), PATIENCE_S, "answers of new workers only")
        rolled.view.wait_roll(1, RollState.COMMITTED)
        load.wait_more()
        rolled.check_renewed(rolled.pids, generation=2)
    assert watch.most_parked == 3
    assert watch.fewest_serving == 3
    assert load.report.complaints(NOTICED_S) == []


def new_only(rolled: Site, load: Load) -> bool:
    before = dict(load.report.pids)
    load.wait_more(50)
    answered = {pid for pid, count in load.report.pids.items() if count > before.get(pid, 0)}
    return not answered & set(rolled.pids.values())


def test_preloaded_code_is_not_loaded_anew(site: StartSite) -> None:
    """And whoever wonders why reads it in the log."""
    rolled = site(preload_app=True)
    rolled.deploy("raise RuntimeError('nobody loads this')\n")
    rolled.roll()
    rolled.check_renewed(rolled.pids, generation=2)
    (line,) = rolled.lines("preload_app")
    assert "[WARNING]" in line and "code" in line
    assert rolled.server.get("/").status == 200


@EVERY_KIND
def test_the_drain_timeout_ends_what_does_not_finish(site: StartSite) -> None:
    rolled = site(workers=1, cluster_drain_timeout=1, graceful_timeout=60)
    with rolled.server.connect() as busy:
        busy.send(b"GET /?sleep=600 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: rolled.view.total("busy") == 1, PATIENCE_S, "a busy worker")
        rolled.roll()
        rolled.check_renewed(rolled.pids, generation=2)
        assert busy.closed_by_peer()


#: Between the calls of a client: six that never pause leave nothing for the roll.
CALM_S = 0.02


def keep_calling(seen: Caller, url: str, transport: str, over: Event) -> None:
    client = new_client()
    try:
        client.connect(url, transports=[transport], wait_timeout=PATIENCE_S)
        while not over.is_set():
            note(seen, seen.answers, client.call("call", seen.answers, timeout=PATIENCE_S))
            over.wait(CALM_S)
        client.disconnect()
    except Exception as error:  # what went wrong is what the test asks for
        seen.error = repr(error)


@pytest.mark.one_gunicorn
@EVERY_KIND
@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_socketio_clients_stay_with_their_process(site: StartSite, transport: str) -> None:
    """Only that knows them. It goes on for them while it drains, though its slot is taken."""
    # A poll that is under way when its client leaves ends with the ping interval.
    rolled = site("chat_short_poll:app", cluster_drain_timeout=30, threads=50)
    callers, over = [Caller() for _ in range(6)], Event()
    with ThreadPoolExecutor(6) as pool:
        for caller in callers:
            pool.submit(keep_calling, caller, rolled.server.url, transport, over)
        try:
            wait_answers(callers, 20)
            rolled.roll()
            wait_answers(callers, 20 + max(caller.answers for caller in callers))
            assert State.DRAINING in {row.state for row in rolled.view.rows}
        finally:
            over.set()
    assert [caller.error for caller in callers if caller.error] == []
    for caller in callers:
        (pid,) = set(caller.pids)
        assert pid in rolled.pids.values()
    rolled.check_renewed(rolled.pids, generation=2)


def wait_answers(callers: list[Caller], count: int) -> None:
    def all_have() -> bool:
        return all(caller.answers >= count or caller.error for caller in callers)

    wait_until(all_have, PATIENCE_S, f"{count} answers for each")


def test_a_reload_while_the_first_workers_boot(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    directory = new_directory()
    deploy(directory, slow(1))
    server = gunicorn(APP, "-k", STICKY, "-w", "3", directory=directory, wait=False)
    view = View(server)
    wait_until(lambda: len(view.rows) == 3, PATIENCE_S, "workers that boot")
    server.signal(signal.SIGHUP)
    view.wait_roll(1)
    view.wait_slots(3)
    assert server.get("/").status == 200


def test_an_old_worker_that_dies_meanwhile(site: StartSite) -> None:
    """Its replacement has the new code, and the roll goes on."""
    rolled = site("release:app", raw_env=["RELEASE=old"])
    rolled.configure(raw_env=["RELEASE=new", "IMPORT_S=0.7"])
    rolled.hup()
    rolled.view.wait_roll(1, RollState.ROLLING)
    os.kill(rolled.pids[2], signal.SIGKILL)
    rolled.view.wait_roll(1)
    rolled.check_renewed(rolled.pids)
    answer = rolled.server.get("/", cookie="gunicorn_worker=2").json()
    assert (answer["worker"], answer["release"]) == (2, "new")


@pytest.mark.one_gunicorn
@EVERY_KIND
def test_everything_at_once(site: StartSite) -> None:
    """Rolls, recycling and TTIN do not get into each other's way."""
    rolled = site("echo:app", max_requests=40, cluster_max_lifetime=2, cluster_roll_surge="100%")
    with rolled.load(connections=20, request=MIXED) as load, Watch(rolled.view) as watch:
        for _ in range(3):
            load.wait_more(300)
            rolled.server.signal(signal.SIGTTIN)
            rolled.roll()
        load.wait_more(300)
        rolled.server.wait_for(
            lambda: min(rolled.view.generations().values()) > 4, PATIENCE_S, "recycled workers"
        )
    assert load.report.complaints(NOTICED_S) == []
    assert load.report.connections == 20
    assert watch.fewest_serving >= 3


HOOKS = """
def note(name):
    with open("hooks.txt", "a") as file:
        file.write(name + "\\n")

def pre_fork(server, worker): note("pre_fork")
def post_fork(server, worker): note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def worker_exit(server, worker): note("worker_exit")
def child_exit(server, worker): note("child_exit")
def on_reload(server): note("on_reload")
def nworkers_changed(server, new, old): note("nworkers_changed")
"""


@pytest.mark.parametrize("kind", [STICKY, "gthread"], ids=["Sticky", "gthread"])
def test_the_users_hooks_run(site: StartSite, kind: str) -> None:
    rolled = site(worker_class=kind, hooks=HOOKS)
    rolled.configure(workers=2)
    rolled.roll()
    rolled.view.wait_slots(2, generation=2)
    notes = rolled.directory / "hooks.txt"
    wait_until(lambda: notes.read_text().count("child_exit") == 3, PATIENCE_S, "the last exit")
    called = Counter(notes.read_text().split())
    assert called["on_reload"] == 1
    assert {called[name] for name in ("pre_fork", "post_fork", "post_worker_init")} == {3 + 2}
    assert {called[name] for name in ("worker_exit", "child_exit")} == {3}
    assert called["nworkers_changed"] == 2


@pytest.mark.parametrize(
    ("kind", "app"), [("gthread", APP), ("sync", APP), ("asgi", "lifespan:app")]
)
def test_gunicorns_own_workers_roll_too(site: StartSite, kind: str, app: str) -> None:
    """They cannot hand their connections over, so a client is told to connect anew."""
    # The asgi worker of gunicorn 25 waits for idle connections.
    rolled = site(app, worker_class=kind, graceful_timeout=3)
    rolled.configure(raw_env=["STARTUP_S=1"])
    rolled.deploy(slow(1))
    with rolled.load(connections=8) as load, Watch(rolled.view) as watch:
        load.wait_more()
        rolled.roll()
        load.wait_more()
        rolled.check_renewed(rolled.pids, generation=2)
    assert set(load.report.statuses) == {200}
    assert watch.fewest_serving == 3
    assert watch.most_active == 4
    assert failures(load.report, kind) == []


# --- the arbiter's own time ---------------------------------------------------------------

SLOWEST_TURN_S = 0.05


def turn_of_a_busy_arbiter(site: StartSite) -> float:
    """The longest turn while it rolls, mends, and changes its mind, on a machine of its own."""
    rolled = site()
    with rolled.load() as load:
        for _ in range(2):
            rolled.roll()
            generation = rolled.view.generations()[0]
            os.kill(rolled.view.pids()[0], signal.SIGKILL)
            rolled.view.wait_generation(0, generation + 1)
            rolled.view.wait_slots(3)
        rolled.deploy("raise RuntimeError\n")
        rolled.roll(RollState.FAILED)
        rolled.deploy(GOOD)
        rolled.server.signal(signal.SIGTTIN)
        rolled.view.wait_slots(4)
    slowest = rolled.view.slowest_turn
    rolled.server.stop()
    assert slowest > 0
    return slowest / load.report.crowding.factor


@pytest.mark.one_gunicorn
def test_no_turn_of_the_arbiter_takes_long(site: StartSite) -> None:
    """Measured five times at most: the machine may be busy with something else for as long."""
    turns: list[float] = []
    while not turns or (min(turns) >= SLOWEST_TURN_S and len(turns) < 5):
        turns.append(turn_of_a_busy_arbiter(site))
    assert min(turns) < SLOWEST_TURN_S, turns
