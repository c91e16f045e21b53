"""Where the embedded store of a server is that nobody has given a place: found again by it, and
by nobody else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gunicorn_cluster_ext.stores.embedded.shared_state import Cell
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.store_site import STICKY, Client
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

Start = Callable[..., Gunicorn]
NAMED = {"GUNICORN_CLUSTER_STORE_NAME": "shop"}


@pytest.fixture
def home(new_directory: Callable[[], Path]) -> Path:
    return new_directory()


@pytest.fixture
def start(gunicorn: StartGunicorn, home: Path) -> Start:
    """A server whose application is in that directory, and its stores."""

    def start(*args: str, bind: str, **options: Any) -> Gunicorn:
        env = {"XDG_STATE_HOME": str(home), **options.pop("env", {})}
        args = ("-k", STICKY, "-w", "2", "--chdir", str(home), *args)
        return gunicorn("shared_state:app", *args, bind=bind, env=env, **options)

    return start


def stores(home: Path) -> list[Path]:
    return sorted((home / "gunicorn-cluster").glob("*"))


def test_each_server_finds_its_own_again(start: Start, home: Path) -> None:
    first = Client(start(bind=f"unix:{home}/1.sock"))
    first.get("/put?key=a&value=1")
    other = Client(start(bind=f"unix:{home}/2.sock"))
    other.cookie = first.cookie
    assert other.get("/read") == {}
    assert len(stores(home)) == 2
    first.server.stop()
    first.server = start(bind=f"unix:{home}/1.sock")
    assert first.get("/read") == {"a": "1"}
    assert len(stores(home)) == 2


def test_a_reload_that_listens_elsewhere_keeps_it(start: Start, home: Path) -> None:
    config = f"bind = ['unix:{home}/1.sock']"
    client = Client(start(bind=None, config=config))
    client.get("/put?key=a&value=1")
    old = client.server.worker_pids()
    client.server.config_path.write_text(f"bind = ['unix:{home}/1.sock', 'unix:{home}/2.sock']")
    client.server.signal(1)
    wait_until(lambda: not set(old) & set(client.server.worker_pids()), 20, "new workers")
    assert client.get("/read") == {"a": "1"}
    assert len(stores(home)) == 1


def test_a_shell_has_the_same_by_its_name(start: Start, home: Path) -> None:
    client = Client(start(bind=f"unix:{home}/1.sock", env=NAMED))
    assert client.get("/keep?key=a&value=b") is True
    code = "from gunicorn_cluster_ext import cache; print(cache.get('a')); cache.set('a', 'c')"
    env = {**os.environ, **NAMED, "XDG_STATE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd="/", stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"b\n"
    assert client.get("/value?key=a") == "c"


def test_an_application_that_is_too_early_is_told(start: Start, home: Path) -> None:
    env = {"AT_IMPORT": "1"}
    server = start("--preload", bind=f"unix:{home}/1.sock", env=env)
    assert "Set cluster_store_name." in server.log_text()
    server.stop()
    server = start("--preload", bind=f"unix:{home}/1.sock", env={**env, **NAMED})
    assert "cluster_store_name" not in server.log_text()
    assert Client(server).get("/value?key=imported_by") == server.pid


def test_sessions_outlive_a_killed_worker_and_a_reboot(start: Start, home: Path) -> None:
    """The last worker is killed while the server ends, and can put nothing on disk."""
    address = f"unix:{home}/1.sock"
    client = Client(start("--graceful-timeout", "1", bind=address))
    client.get("/put?key=a&value=1")
    server = client.server
    for pid in server.worker_pids():
        os.kill(pid, 19)  # SIGSTOP: what is left is SIGKILL
    server.stop()
    reboot(stores(home)[0])
    client.server = start(bind=address)
    assert client.get("/read") == {"a": "1"}
    assert "starts empty" not in client.server.log_text()


def test_without_that_a_power_cut_begins_anew(start: Start, home: Path) -> None:
    """So what the test above does is what makes the difference."""
    address = f"unix:{home}/1.sock"
    client = Client(start(bind=address))
    client.get("/put?key=a&value=1")
    children = client.server.worker_pids()
    os.kill(client.server.pid, 9)
    for pid in children:
        os.kill(pid, 9)
    client.server.wait_exit(10)
    reboot(stores(home)[0])
    client.server = start(bind=address)
    assert client.get("/read") == {}
    assert "starts empty" in client.server.log_text()


def reboot(directory: Path) -> None:
    """As if what was used was used during another boot."""
    with open(directory / "state", "r+b") as file:
        file.seek(Cell.BOOT * 8)
        file.write(b"another boot's  ")
