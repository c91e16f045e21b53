"""gunicorn-cluster systemd: units that systemd accepts, and what they rely upon in gunicorn."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.command import Done, run_command
from tests.harness.clients.connection import Connection
from tests.harness.ports import accepts, free_port
from tests.harness.process import Process, find_program
from tests.harness.programs import StartGunicorn
from tests.harness.servers.deploy import APP, GOOD, deploy, slow
from tests.harness.servers.gunicorn import environment
from tests.harness.view import STICKY, View

pytestmark = pytest.mark.one_gunicorn


def write(directory: Path, config: str, *options: str) -> Done:
    (directory / "gunicorn.conf.py").write_text(config)
    return run_command("systemd", *options, "--", "whoami:app", directory=directory)


def verify(*units: Path) -> str:
    """What systemd has to say against them."""
    done = subprocess.run(
        [find_program("systemd-analyze"), "verify", *map(str, units)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Of other units of this machine it may complain as well.
    names = "|".join(unit.stem for unit in units)
    return "\n".join(re.findall(rf".*(?:{names}).*", done.stdout + done.stderr))


def lines(path: Path) -> dict[str, str]:
    """What is set in a unit."""
    found = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
    return dict(found)


# --- the units ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        "bind = '127.0.0.1:8000'\nworkers = 2\n",
        "bind = ['unix:shop.sock', '[::1]:8000', 'unix:\\0shop']\nkeepalive = 75\n",
        "cluster_startup_timeout = 0\ncluster_roll_surge = 0\ncluster_roll_unavailable = 1\n",
    ],
)
def test_systemd_accepts_them(new_directory: Callable[[], Path], config: str) -> None:
    directory = new_directory()
    done = write(directory, config, "--name", "shop", "--user", "www-data")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote shop.service\nwrote shop.socket\n")
    assert verify(directory / "shop.service", directory / "shop.socket") == ""


def test_what_systemd_would_say(new_directory: Callable[[], Path]) -> None:
    """So that the test above would notice."""
    directory = new_directory()
    write(directory, "", "--name", "shop")
    path = directory / "shop.service"
    path.write_text(path.read_text().replace("KillMode=mixed", "KillMode=mxied"))
    assert "mxied" in verify(path)


def test_times_follow_from_the_configuration(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    config = "graceful_timeout = 120\nworkers = 5\ncluster_startup_timeout = 20\n"
    write(directory, config + "cluster_roll_observe = 15\n")
    service = lines(directory / "gunicorn.service")
    assert service["TimeoutStopSec"] == "130"
    assert service["TimeoutStartSec"] == str(5 * 20 + 15 + 10)
    config += "cluster_roll_surge = 0\ncluster_roll_unavailable = 1\ncluster_drain_timeout = 7\n"
    write(directory, config, "--force")
    assert lines(directory / "gunicorn.service")["TimeoutStartSec"] == str(5 * 27 + 10)
    write(directory, "cluster_startup_timeout = 0\n", "--force")
    assert lines(directory / "gunicorn.service")["TimeoutStartSec"] == "infinity"


def test_where_it_listens(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    write(directory, "bind = ['localhost:8001', 'unix:x.sock', 'unix:\\0y']\nbacklog = 9\n")
    text = (directory / "gunicorn.socket").read_text()
    assert re.findall("ListenStream=(.*)", text) == ["127.0.0.1:8001", f"{directory}/x.sock", "@y"]
    assert lines(directory / "gunicorn.socket")["Backlog"] == "9"


def test_words_that_mean_something_to_systemd(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    odd = ["-e", "GREETING=50% of \"$HOME\"; 'a\\b'", "-e", "EMPTY=", "whoami:app"]
    done = run_command("systemd", "--", *odd, directory=directory)
    assert done.returncode == 0, done.stderr
    expected = '-e "GREETING=50%% of \\"$$HOME\\"; \'a\\\\b\'" -e EMPTY= whoami:app'
    assert lines(directory / "gunicorn.service")["ExecStart"].endswith(f"-m gunicorn {expected}")
    assert verify(directory / "gunicorn.service", directory / "gunicorn.socket") == ""


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("daemon = True\n", "daemon = True"),
        ("reuse_port = True\n", "reuse_port = True"),
        ("bind = 'fd://3'\n", "fd://3"),
        ("cluster_sticki = []\n", "Did you mean cluster_sticky?"),
        ("bind = \n", "SyntaxError"),
    ],
)
def test_what_cannot_be_a_service(
    new_directory: Callable[[], Path], config: str, complaint: str
) -> None:
    directory = new_directory()
    done = write(directory, config)
    assert done.returncode == 1 and done.stdout == ""
    assert complaint in done.stderr
    assert not list(directory.glob("*.service"))


def test_nothing_is_overwritten_unasked(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    (directory / "gunicorn.socket").write_text("precious")
    done = write(directory, "")
    assert done.returncode == 1 and "gunicorn.socket: already exists" in done.stderr
    assert not (directory / "gunicorn.service").exists()


# --- what they rely upon --------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """What systemd keeps while gunicorn comes and goes."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    yield listener
    listener.close()


def test_gunicorn_serves_from_systemds_socket(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], listening: socket.socket
) -> None:
    directory = new_directory()
    deploy(directory, GOOD)
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(directory / "notify"))
    told.settimeout(20)
    server = gunicorn(
        APP,
        *("-k", STICKY, "-w", "2"),
        directory=directory,
        bind=None,
        sockets=[listening],
        env={"NOTIFY_SOCKET": str(directory / "notify")},
    )
    assert told.recv(1_000).startswith(b"READY=1")
    told.close()
    assert server.address == listening.getsockname()
    view = View(server)
    before = view.wait_slots(2)
    with server.connect() as kept:
        assert kept.get("/").json()["pid"] in before.values()
        deploy(directory, slow(0.3))
        server.signal(signal.SIGHUP)
        view.wait_roll(1)
        after = view.wait_slots(2, generation=2)
        assert kept.get("/").json()["pid"] in after.values()
    deploy(directory, "raise RuntimeError\n")
    server.signal(signal.SIGHUP)
    view.wait_roll(2, RollState.FAILED)
    assert view.wait_slots(2) == after
    assert server.get("/").status == 200


def test_systemds_own_launcher(
    new_directory: Callable[[], Path], keep: Callable[[Process], Process]
) -> None:
    """It listens, and starts gunicorn when the first client comes, who is served."""
    directory, port = new_directory(), free_port()
    passed = environment(directory, {"GUNICORN_CLUSTER_DIR": str(directory)})
    command = [find_program("systemd-socket-activate"), "-l", f"127.0.0.1:{port}"]
    command += [f"--setenv={name}" for name in ("PYTHONPATH", "GUNICORN_CLUSTER_DIR", "PATH")]
    command += [sys.executable, "-m", "gunicorn", "-k", STICKY, "-w", "2", "whoami:app"]
    server = keep(Process("activated", command, directory, passed))
    server.wait_for(lambda: accepts(port), 20, "systemd-socket-activate")
    with Connection(("127.0.0.1", port)) as first:
        assert first.get("/").json()["worker"] in (0, 1)
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: "Replaced 2 workers" in server.log_text(), 30, "a roll")
        assert first.get("/").json()["worker"] in (0, 1)
    assert f"Listening at: http://127.0.0.1:{port}" in server.log_text()


def test_a_reload_is_as_good_as_the_deploy(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], listening: socket.socket
) -> None:
    """What `systemctl reload` does, with the words that stand in the unit."""
    directory = new_directory()
    deploy(directory, GOOD)
    arguments = ["-k", STICKY, "-w", "2"]
    done = run_command("systemd", "--", *arguments, APP, directory=directory)
    assert done.returncode == 0, done.stderr
    env = {"GUNICORN_CLUSTER_DIR": str(directory)}
    server = gunicorn(APP, *arguments, directory=directory, bind=None, sockets=[listening], env=env)
    view = View(server)
    view.wait_slots(2)
    words = lines(directory / "gunicorn.service")["ExecReload"]
    words = words.replace("$MAINPID", str(server.pid)).replace("%t/gunicorn", str(directory))
    program, *rest = words.split()
    assert (program, rest[:2]) == (sys.executable, ["-m", "gunicorn_cluster_ext"])
    assert run_command(*rest[2:], directory=directory).returncode == 0
    after = view.wait_slots(2, generation=2)
    deploy(directory, "raise RuntimeError\n")
    done = run_command(*rest[2:], directory=directory)
    assert done.returncode == 1
    assert "could not load the application" in done.stdout + done.stderr
    assert view.wait_slots(2) == after


def test_nobody_is_refused_while_gunicorn_restarts(
    gunicorn: StartGunicorn, listening: socket.socket
) -> None:
    options = {"bind": None, "sockets": [listening]}
    first = gunicorn("whoami:app", "-k", STICKY, "-w", "2", **options)
    first.stop()
    with Connection(listening.getsockname()) as waiting:
        waiting.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        second = gunicorn("whoami:app", "-k", STICKY, "-w", "2", **options)
        assert waiting.answer().json()["pid"] in second.worker_pids()


def test_a_unix_socket_of_systemd_stays(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    path = new_directory() / "shop.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = gunicorn("whoami:app", "-k", STICKY, bind=None, sockets=[listener])
        assert server.address == str(path)
        server.stop()
        assert path.exists()


def test_a_reload_that_changes_the_address_keeps_serving(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path], listening: socket.socket
) -> None:
    """The socket unit says where it listens; the configuration has no say in it."""
    server = gunicorn(
        "whoami:app", "-k", STICKY, config="bind = '127.0.0.1:1'\n", bind=None, sockets=[listening]
    )
    view = View(server)
    view.wait_slots(1)
    server.config_path.write_text("bind = '127.0.0.1:2'\n")
    server.signal(signal.SIGHUP)
    view.wait_roll(1)
    with Connection(listening.getsockname()) as connection:
        assert connection.get("/").status == 200
