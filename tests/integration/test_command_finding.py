"""How a command finds the server that is meant, and what it says when it cannot."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime import discovery
from gunicorn_cluster_ext.runtime.board.board import Board
from tests.harness.clients.command import Done, run_command
from tests.harness.forks import in_child
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.site import READY_MADE, StartSite
from tests.harness.view import PATIENCE_S, STICKY
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

COMMANDS = [
    ["status"],
    ["status", "--json"],
    ["top"],
    ["roll"],
    ["roll", "--abort"],
    ["restart", "0"],
    ["scale", "2"],
    ["stop"],
    ["events"],
    ["events", "--follow"],
]


def complaint(done: Done) -> str:
    """Check that it is one line, without a traceback, and with its own exit status; return it."""
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("gunicorn-cluster: ")


def test_by_directory_pid_or_pid_file(site: StartSite, new_directory: Callable[[], Path]) -> None:
    found, elsewhere = site(pidfile="gunicorn.pid"), new_directory()
    choices = [
        ["--dir", str(found.directory)],
        ["--pid", str(found.server.pid)],
        ["--pidfile", str(found.directory / "gunicorn.pid")],
        ["--pid", str(found.pids[1])],  # a worker has its server's board
    ]
    for choice in choices:
        done = run_command("status", *choice, directory=elsewhere)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"master {found.server.pid}, " in done.stdout


def test_the_only_one(shared_site: StartSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is named. Others of this user may run, so only one place is searched."""
    only = shared_site()
    places = "gunicorn_cluster_ext.runtime.directory._places"
    monkeypatch.setattr(places, lambda: [str(only.directory)])
    assert discovery.find(None, None, None).pid == only.server.pid


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_there_is_none(tmp_path: Path, command: list[str]) -> None:
    done = run_command(*command, "--dir", str(tmp_path), directory=tmp_path)
    assert complaint(done).startswith("no server found (to find a server with a cluster_dir")


def test_a_pid_that_is_no_server(tmp_path: Path) -> None:
    """The pid is that of another program, and then of no process."""
    pid = os.getppid()  # the test's own process may have a board open
    said = complaint(run_command("status", "--pid", str(pid), directory=tmp_path))
    assert said.startswith(f"no server found with the pid {pid} (it is not a gunicorn")
    said = complaint(run_command("status", "--pid", str(2**22 + 1), directory=tmp_path))
    assert said.endswith("(there is no such process)")
    said = complaint(run_command("status", "--pidfile", "/no/where", directory=tmp_path))
    assert said.startswith("no pid in the pid file /no/where: ")


def test_there_are_several(site: StartSite) -> None:
    first, second = site(workers=1), site(workers=1)
    env = {"TMPDIR": str(second.directory)}
    said = complaint(run_command("status", directory=first.directory, env=env))
    assert said.endswith("; say which") and " servers run: " in said
    assert {str(first.server.pid), str(second.server.pid)} <= set(re.findall(r"\d+", said))


def test_one_that_was_killed(site: StartSite) -> None:
    killed = site(workers=1)
    killed.server.kill()
    choice = ["--dir", str(killed.directory)]
    said = complaint(run_command("status", *choice, directory=killed.directory))
    assert said == f"no server found ({killed.server.pid} has died)"


def test_its_pid_is_now_another_process(site: StartSite, tmp_path: Path) -> None:
    """A process that has the pid of a dead server gets no signal."""
    (tmp_path / f"gunicorn-cluster-{os.getpid()}-left").mkdir()
    Board.create(1, tmp_path / f"gunicorn-cluster-{os.getpid()}-left" / "board").words.release()
    done = run_command("stop", "--dir", str(tmp_path), directory=tmp_path)
    assert complaint(done) == f"no server found ({os.getpid()} has died)"


def test_another_version(site: StartSite) -> None:
    other = site(workers=1)
    with other.view.path.open("r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(8, sys.byteorder))
    choice = ["--pid", str(other.server.pid)]
    said = complaint(run_command("status", *choice, directory=other.directory))
    assert said.endswith(": use the installation of this pack that the server runs with")


def test_another_user(site: StartSite) -> None:
    """Root can become another user; other users can only take their own rights away."""
    private = site(workers=1)
    directory = private.view.path.parent
    private.directory.chmod(0o755)

    def find() -> list[str]:
        if os.geteuid() == 0:
            os.setuid(65534)
        else:
            directory.chmod(0)
        return [_not_found(private.server.pid, None), _not_found(None, str(private.directory))]

    for said in in_child(find):
        assert re.fullmatch(r"server \d+ belongs to user \w+, and you are \w+: use sudo", said)
        assert str(private.server.pid) in said
    directory.chmod(0o700)


def _not_found(pid: int | None, base: str | None) -> str:
    try:
        discovery.find(pid, None, base)
    except discovery.ServerNotFound as error:
        return str(error)
    return "found"


@pytest.mark.parametrize("kind", [STICKY, "gthread"])
def test_no_directory_can_be_written(gunicorn: StartGunicorn, tmp_path: Path, kind: str) -> None:
    """The server runs, one line says so, and the command says what is wrong."""
    config = f"{READY_MADE}worker_class = {kind!r}\ncluster_dir = '/proc/no/such'\n"
    server: Gunicorn = gunicorn("whoami:app", config=config)
    assert server.get("/").status == 200
    lines = [line for line in server.log_text().splitlines() if "No directory" in line]
    assert len(lines) == 1 and "[WARNING]" in lines[0]
    for choice in (["--pid", str(server.pid)],):
        said = complaint(run_command("status", *choice, directory=tmp_path))
        assert said.startswith(f"no server found with the pid {server.pid} (it is not a gunicorn")
        assert "could not write any directory" in said
    server.signal(signal.SIGHUP)
    wait_until(lambda: "Replaced 1 workers" in server.log_text(), PATIENCE_S, "a roll")
    assert server.get("/").status == 200
