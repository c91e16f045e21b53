"""Servers with few rights: nothing can be written, or they run as another user."""

import os
import pwd
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gunicorn_cluster_ext.cli import main
from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.command import run_command
from tests.harness.clients.scrape import Scrape
from tests.harness.forks import in_child
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

COMPLAINT = "No directory for the board"


def lines(server: Gunicorn, words: str) -> list[str]:
    return [line for line in server.log_text().splitlines() if words in line]


@pytest.mark.parametrize("place", ["/proc/nowhere", "/proc", "gunicorn.conf.py"])
def test_nothing_can_be_written(gunicorn: StartGunicorn, place: str) -> None:
    """The workers still hand over and roll: what they share needs no file."""
    config = f"cluster_dir = {place!r}\nworkers = 3\nthreads = 4\n"
    server = gunicorn("counted_requests:app", "-k", STICKY, config=config, wait=False)
    wait_until(lambda: lines(server, "All 3 workers serve"), PATIENCE_S, "all workers")
    for slot in (0, 1, 2):
        assert server.get("/", Cookie=f"gunicorn_worker={slot}").json()["worker"] == slot
    server.signal(signal.SIGHUP)
    wait_until(lambda: lines(server, "Replaced 3 workers"), PATIENCE_S, "a roll")
    seen = Scrape(server.get("/metrics").body.decode())
    assert seen.by("gunicorn_cluster_rolls_total", "outcome")["committed"] == 1
    (complaint,) = lines(server, COMPLAINT)
    assert "[WARNING]" in complaint and "Set cluster_dir to a writable one" in complaint
    server.stop()
    problems = [*lines(server, "[WARNING]"), *lines(server, "[ERROR]")]
    assert [line for line in problems if COMPLAINT not in line] == []
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("command", ["status", "metrics", "roll", "stop"])
def test_the_command_says_so(gunicorn: StartGunicorn, command: str) -> None:
    config = "cluster_dir = '/proc/nowhere'\n"
    server = gunicorn("whoami:app", "-k", STICKY, config=config)
    done = run_command(command, "--pid", str(server.pid), directory=server.directory)
    assert (done.returncode, done.stdout) == (3, "")
    assert "could not write any directory, as its log says" in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.get("/").status == 200


# --- another user ---------------------------------------------------------------------------------


@pytest.fixture
def user() -> str:
    """The user of the workers; only root can choose one."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def lowered(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], user: str
) -> tuple[Gunicorn, View]:
    """A server whose master runs as the tests' user, and whose workers run as `user`."""
    directory = new_directory()
    directory.chmod(0o755)
    # Imported by the master: that user may not be allowed to read this Python.
    config = f"import whoami\nuser = {user!r}\nworkers = 2\nthreads = 4\n"
    server = gunicorn("whoami:app", "-k", STICKY, config=config, directory=directory)
    view = View(server)
    view.wait_slots(2)
    return server, view


def test_workers_of_another_user(lowered: tuple[Gunicorn, View], user: str) -> None:
    server, view = lowered
    assert {psutil.Process(pid).username() for pid in view.pids().values()} == {user}
    for slot in (0, 1):
        assert server.get("/", Cookie=f"gunicorn_worker={slot}").json()["worker"] == slot
    server.signal(signal.SIGHUP)
    view.wait_roll(1, RollState.COMMITTED)
    assert {psutil.Process(pid).username() for pid in view.wait_slots(2).values()} == {user}
    server.stop()
    assert lines(server, "[WARNING]") == lines(server, "[ERROR]") == []
    assert not list(server.directory.glob("gunicorn-cluster-*")), "its files have gone"


def test_who_may_look(lowered: tuple[Gunicorn, View], user: str) -> None:
    """Only the user of the workers and root may look."""
    server, _ = lowered

    def look(as_whom: str) -> int:
        os.setuid(pwd.getpwnam(as_whom).pw_uid)
        os.environ["XDG_RUNTIME_DIR"] = str(server.directory)
        return main(["status", "--pid", str(server.pid)])

    assert in_child(lambda: look(user)) == 0
    if os.geteuid() == 0:
        assert in_child(lambda: look("daemon")) == 3
