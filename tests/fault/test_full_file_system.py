"""File systems that are full: a tmpfs of some kilobytes, for what the pack keeps in memory."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.programs import StartGunicorn
from tests.harness.servers.site import StartSite, for_each
from tests.harness.view import STICKY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")

USE_STORE = """
from gunicorn_cluster_ext import cache
try:
    print("set", cache.set("name", "value" * 20), cache.get("name"))
except Exception as error:
    print(type(error).__name__, error)
"""


class Tmpfs:
    """A tmpfs of ``size`` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        options = f"size={size},mode=1777"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass

    def drain(self) -> None:
        (self.path / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[int], Tmpfs]]:
    with contextlib.ExitStack() as stack:

        def mount(size: int) -> Tmpfs:
            path = tmp_path / f"mount{size}"
            path.mkdir()
            mounted = Tmpfs(path, size)
            stack.callback(mounted.close)
            return mounted

        yield mount


def run_store(directory: Path) -> str:
    """Use the embedded store in ``directory`` once, in a process of its own."""
    env = {**os.environ, "GUNICORN_CLUSTER_STORE_PATH": str(directory)}
    done = subprocess.run(
        [sys.executable, "-c", USE_STORE], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    return done.stdout.strip()


def test_a_board_without_room_is_anonymous(
    gunicorn: StartGunicorn, tmpfs: Callable[[int], Tmpfs]
) -> None:
    full = tmpfs(128 << 10)
    full.fill()
    config = f"cluster_dir = {str(full.path)!r}\n"
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "2", config=config)
    assert server.get("/").status == 200
    assert "No directory for the board" in server.log_text()
    assert [path.name for path in full.path.iterdir()] == ["filler"]


def test_a_board_whose_file_system_becomes_full(
    site: StartSite, tmpfs: Callable[[int], Tmpfs]
) -> None:
    """The arbiter first writes the ledger when a worker exits."""
    memory = tmpfs(512 << 10)
    served = site(cluster_dir=str(memory.path), cluster_restart_delay=0)
    memory.fill()
    os.kill(served.view.pids()[1], signal.SIGKILL)
    served.view.wait_generation(1, 2)
    with served.load(request=for_each(3)) as load:
        served.roll()
        served.view.wait_slots(3)
    assert load.report.failures == []


def test_a_store_without_room_is_an_error_until_there_is(tmpfs: Callable[[int], Tmpfs]) -> None:
    """It is no signal, whether the store was used before or not."""
    disk = tmpfs(2 << 20)
    directory = disk.path / "store"
    directory.mkdir(mode=0o700)
    disk.fill()
    assert run_store(directory) == "set False None"
    disk.drain()
    assert run_store(directory).startswith("set True value")
    disk.fill()
    assert "value" in run_store(directory)
