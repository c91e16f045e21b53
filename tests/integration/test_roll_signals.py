"""Whatever comes while workers are replaced, or is changed by it, does what it always does."""

import os
import signal
import time

import psutil
import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.connection import Connection
from tests.harness.clients.load import NOTICED_S, Load
from tests.harness.ports import accepts, free_port
from tests.harness.processes import has_ended
from tests.harness.servers.deploy import only_in, slow
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S, STICKY, View, Watch
from tests.harness.waiting import wait_until

HANGS = "import time\ntime.sleep(3600)\n"


def begin_roll(rolled: Site, replaced: int = 1) -> None:
    """HUP, and wait until some are replaced; the others still boot."""
    number = rolled.view.roll.number + 1
    rolled.hup()
    wait_until(
        lambda: rolled.view.roll[:3] == (RollState.ROLLING, number, replaced),
        PATIENCE_S,
        f"a roll that has replaced {replaced}",
    )


# --- a second HUP ------------------------------------------------------------------------------


def environment(release: str, seconds: float = 0.7) -> list[str]:
    return [f"RELEASE={release}", f"IMPORT_S={seconds}"]


def releases(rolled: Site) -> set[str]:
    """What the worker of each slot runs."""
    slots = rolled.view.slots()
    return {
        rolled.server.get("/", cookie=f"gunicorn_worker={slot}").json()["release"] for slot in slots
    }


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_second_hup(site: StartSite, replaced: int) -> None:
    """The roll begins anew, with the newest configuration."""
    rolled = site("release:app", raw_env=environment("first", 0))
    with rolled.load() as load, Watch(rolled.view) as watch:
        load.wait_more()
        rolled.configure(raw_env=environment("second"))
        begin_roll(rolled, replaced)
        rolled.configure(raw_env=environment("third"))
        assert rolled.roll()[1:4] == (2, 3, 3)
        load.wait_more()
        rolled.view.wait_slots(3)
        assert releases(rolled) == {"third"}
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3


def test_many_hups(site: StartSite) -> None:
    rolled = site("release:app", raw_env=environment("0", 0))
    with rolled.load() as load, Watch(rolled.view) as watch:
        for release in range(1, 6):
            load.wait_more(50)
            rolled.configure(raw_env=environment(str(release), 0.2))
            rolled.hup()
        wait_until(lambda: rolled.view.roll.state is RollState.COMMITTED, PATIENCE_S, "the end")
        rolled.view.wait_slots(3)
        assert releases(rolled) == {"5"}
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3


def test_a_second_hup_while_a_successor_is_forked(site: StartSite) -> None:
    """Nobody hears a signal between the fork and the worker's handlers, so it must be repeated."""
    late = "import time\ndef post_fork(server, worker):\n    time.sleep(0.15)\n"
    rolled = site(hooks=late)
    with rolled.load() as load:
        for _ in range(3):
            number = rolled.view.roll.number
            rolled.hup()
            rolled.view.wait_roll(number + 1, RollState.ROLLING)
            wait_until(lambda: len(rolled.view.rows) > 3, PATIENCE_S, "a successor")
            begun = time.monotonic()
            rolled.roll()
            assert time.monotonic() - begun < 10
            rolled.view.wait_slots(3)
    assert load.report.complaints(NOTICED_S) == []


def test_a_second_hup_instead_of_one_that_hangs(site: StartSite) -> None:
    rolled = site(cluster_roll_rollback="full")
    rolled.deploy(HANGS)
    with rolled.load() as load:
        begin_roll(rolled, replaced=0)
        rolled.deploy(slow(0.1))
        rolled.roll()
        load.wait_more()
        rolled.view.wait_slots(3)
    assert load.report.complaints(NOTICED_S) == []
    assert not set(rolled.view.pids().values()) & set(rolled.pids.values())


def test_a_broken_configuration_during_a_roll(site: StartSite) -> None:
    """It is refused, and the roll goes on."""
    rolled = site("release:app", raw_env=environment("first", 0))
    rolled.configure(raw_env=environment("second"))
    with rolled.load() as load:
        begin_roll(rolled)
        rolled.server.config_path.write_text("workers = (\n")
        rolled.hup()
        rolled.view.wait_roll(1)
        load.wait_more(50)
        rolled.check_renewed(rolled.pids, generation=2)
        assert releases(rolled) == {"second"}
    assert len(rolled.lines("Reload refused")) == 1
    assert load.report.complaints(NOTICED_S) == []


# --- other signals during a roll ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTTIN, 4), (signal.SIGTTOU, 2)],
    ids=["TTIN", "TTOU"],
)
def test_ttin_and_ttou(site: StartSite, number: int, workers: int) -> None:
    rolled = site("release:app", raw_env=environment("first", 0))
    rolled.configure(raw_env=environment("second", 0.5))
    with rolled.load() as load, Watch(rolled.view) as watch:
        load.wait_more(50)
        begin_roll(rolled)
        rolled.server.signal(number)
        rolled.view.wait_roll(1)
        pids = rolled.view.wait_slots(workers)
        load.wait_more(50)
    assert not set(pids.values()) & set(rolled.pids.values())
    assert releases(rolled) == {"second"}
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == min(3, workers)


def writers(site: Site, name: str) -> list[int]:
    """The workers that have a file of the server's directory open."""
    path = str(site.directory / name)
    pids = site.server.worker_pids()
    return [pid for pid in pids if path in {f.path for f in psutil.Process(pid).open_files()}]


def test_usr1(site: StartSite) -> None:
    """Log files are opened anew by old and new workers, and by those that boot."""
    rolled = site(accesslog="access.log", workers=2)
    log = rolled.directory / "access.log"
    rolled.deploy(slow(1))
    with rolled.load(connections=4) as load:
        load.wait_more(50)
        begin_roll(rolled)
        log.rename(rolled.directory / "old.log")
        rolled.server.signal(signal.SIGUSR1)
        rolled.view.wait_roll(1)
        wait_until(lambda: log.exists() and log.read_text(), PATIENCE_S, "a new log")
        rolled.check_renewed(rolled.pids, generation=2)
        # Who had no handler yet hears of it when it is ready.
        wait_until(lambda: not writers(rolled, "old.log"), PATIENCE_S, "nobody at the old log")
        size = (rolled.directory / "old.log").stat().st_size
        load.wait_more()
    assert (rolled.directory / "old.log").stat().st_size == size
    assert load.report.complaints(NOTICED_S) == []


@pytest.mark.parametrize("full", [False, True], ids=["keep", "full"])
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=["TERM", "INT", "QUIT"]
)
def test_the_end_of_the_server(site: StartSite, number: int, full: bool) -> None:
    """An import that hangs does not keep it."""
    graceful = 4
    rolled = site(graceful_timeout=graceful, cluster_roll_rollback="full" if full else "keep")
    rolled.deploy(only_in((1, 2), HANGS))
    begin_roll(rolled)
    begun = time.monotonic()
    rolled.server.signal(number)
    # What it still takes is gunicorn's own end: a second's sleep at most, and Python's.
    assert rolled.server.wait_exit(graceful + 2) == 0
    assert time.monotonic() - begun < graceful + 2
    rolled.server.stop()


def test_the_end_of_the_server_loses_no_request(site: StartSite) -> None:
    rolled = site(graceful_timeout=5)
    rolled.deploy(HANGS)
    with rolled.server.connect() as busy:
        busy.send(b"GET /?sleep=1.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: rolled.view.total("busy") == 1, PATIENCE_S, "a busy worker")
        begin_roll(rolled, replaced=0)
        rolled.server.signal(signal.SIGTERM)
        assert busy.answer().json()["pid"] in rolled.pids.values()
    assert rolled.server.wait_exit(7) == 0


def test_usr2(site: StartSite) -> None:
    """A second server starts while the first rolls: both serve, and the roll goes on."""
    rolled = site(workers=2, pidfile="server.pid")
    rolled.deploy(slow(1))
    with rolled.load() as load:
        begin_roll(rolled)
        rolled.server.signal(signal.SIGUSR2)
        second = rolled.directory / "server.pid.2"
        wait_until(lambda: second.exists() and second.read_text().strip(), PATIENCE_S, "a second")
        master = int(second.read_text())
        try:
            check_both_serve(rolled, load, View(rolled.server, master))
        finally:
            os.kill(master, signal.SIGTERM)
        wait_until(lambda: has_ended(master), PATIENCE_S, "its end")
        load.wait_more()
    assert load.report.failures == []
    assert set(load.report.statuses) == {200}


def check_both_serve(rolled: Site, load: Load, second: View) -> None:
    pids = second.wait_slots(2)
    rolled.view.wait_roll(1)
    # Of the first server: the second is one of its children.
    wait_until(
        lambda: set(rolled.view.generations().values()) == {2}, PATIENCE_S, "the end of the roll"
    )
    load.wait_more()
    for pid in {*pids.values(), *rolled.view.pids().values()}:
        wait_until(lambda pid=pid: who(rolled) == pid, PATIENCE_S, f"an answer of {pid}")


def who(rolled: Site) -> int:
    answer = rolled.server.get("/").json()
    pid = answer["pid"]
    assert isinstance(pid, int)
    return pid


# --- what a reload changes -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [5, 1])
def test_another_number_of_workers(site: StartSite, workers: int) -> None:
    rolled = site()
    rolled.configure(workers=workers)
    with rolled.load() as load, Watch(rolled.view) as watch:
        load.wait_more()
        rolled.roll()
        pids = rolled.view.wait_slots(workers)
        load.wait_more()
    assert not set(pids.values()) & set(rolled.pids.values())
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == min(3, workers)


def test_another_address(site: StartSite) -> None:
    """First a second address, then without the first."""
    first, second = free_port(), free_port()
    rolled = site(bind=[f"127.0.0.1:{first}"])
    rolled.configure(bind=[f"127.0.0.1:{first}", f"127.0.0.1:{second}"])
    with rolled.load() as load:
        load.wait_more()
        rolled.roll()
        load.wait_more()
        pids = rolled.view.wait_slots(3, generation=2)
        assert asked(first) in pids.values() and asked(second) in pids.values()
    assert load.report.complaints(NOTICED_S) == []
    rolled.configure(bind=[f"127.0.0.1:{second}"])
    with Load(("127.0.0.1", second)) as load:
        load.wait_more()
        rolled.roll()
        load.wait_more()
        rolled.view.wait_slots(3, generation=3)
        wait_until(lambda: not accepts(first), 10, "the end of the first address")
    assert load.report.complaints(NOTICED_S) == []


def asked(port: int) -> int:
    with Connection(("127.0.0.1", port)) as connection:
        pid = connection.get("/").json()["pid"]
    assert isinstance(pid, int)
    return pid


def test_another_address_with_code_that_fails(site: StartSite) -> None:
    """Nobody stays behind who does not listen where he should."""
    first, second = free_port(), free_port()
    rolled = site(bind=[f"127.0.0.1:{first}"])
    rolled.configure(bind=[f"127.0.0.1:{first}", f"127.0.0.1:{second}"])
    rolled.deploy("import no_such_module\n")
    with rolled.load() as load:
        load.wait_more()
        rolled.roll(RollState.FAILED)
        load.wait_more()
        assert rolled.view.wait_slots(3) == rolled.pids
        assert asked(first) in rolled.pids.values()
    assert load.report.complaints(NOTICED_S) == []


def test_another_worker_class(site: StartSite) -> None:
    """From ours to gunicorn's and back. Its own cannot take connections over."""
    rolled = site()
    with rolled.load(connections=8) as load, Watch(rolled.view) as watch:
        load.wait_more()
        for generation, kind in ((2, "gthread"), (3, STICKY)):
            rolled.configure(worker_class=kind)
            rolled.roll()
            load.wait_more()
            rolled.view.wait_slots(3, generation=generation)
            answer = rolled.server.get("/")
            assert ("gunicorn_worker" in answer.cookies()) == (kind == STICKY)
    assert set(load.report.statuses) == {200}
    assert load.report.failures == []
    assert watch.fewest_serving == 3
