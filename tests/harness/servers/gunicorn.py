"""A real gunicorn, as its command line starts it."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import socket

from tests.harness.clients.connection import Address, Answer, Connection
from tests.harness.listening import listener_inode, polls
from tests.harness.process import Process
from tests.harness.processes import children

TESTS = Path(__file__).parents[2]
APPS = TESTS / "apps"
EXAMPLES = TESTS.parent / "examples"

_LISTENING = re.compile(r"Listening at: (\S+)")
_BOOT_S = 30


class Gunicorn(Process):
    """A gunicorn on a port that the kernel chooses, so no two tests can want the same one.

    `config` becomes the text of a configuration file; `sockets` are passed as systemd does, and
    then `bind` is to be None. The working directory is private; applications are found in
    tests/apps and in examples.
    """

    def __init__(
        self,
        directory: Path,
        app: str,
        *args: str,
        config: str | None = None,
        bind: str | None = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        sockets: Sequence[socket] = (),
        python: str = sys.executable,
    ) -> None:
        command = [*_activation(sockets), python, "-m", "gunicorn"]
        if config is not None:
            self.config_path = directory / "gunicorn.conf.py"
            self.config_path.write_text(config)
            command += ["-c", str(self.config_path)]
        if bind is not None:
            command += ["-b", bind]
        super().__init__(
            "gunicorn",
            [*command, *args, app],
            directory,
            environment(directory, env),
            [each.fileno() for each in sockets],
        )

    @property
    def master_pid(self) -> int:
        return self.pid

    @property
    def address(self) -> Address:
        """The address of its first listener, as its log says."""
        found = _LISTENING.search(self.log_text())
        assert found, self.report("does not say where it listens")
        first = found.group(1).split(",")[0]
        if first.startswith("unix:"):
            return first.removeprefix("unix:")
        host, port = first.rpartition("/")[2].rsplit(":", 1)
        return host, int(port)

    @property
    def port(self) -> int:
        assert isinstance(self.address, tuple), "it listens on a Unix socket"
        return self.address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 20) -> Connection:
        return Connection(self.address, timeout)

    def get(self, target: str = "/", **headers: str) -> Answer:
        """Send one request on a new connection."""
        with self.connect() as connection:
            return connection.get(target, connection="close", **headers)

    def worker_pids(self) -> list[int]:
        return children(self.pid)

    def wait_listening(self) -> None:
        self.wait_for(lambda: _LISTENING.search(self.log_text()), _BOOT_S, "a listening gunicorn")

    def wait_answering(self) -> None:
        self.wait_listening()
        self.wait_for(self._answers, _BOOT_S, "an answer from gunicorn")

    def wait_serving(self, workers: int) -> None:
        """Wait until so many workers accept; before, one of them would answer every request."""
        self.wait_listening()
        inode = listener_inode(self.port)

        def all_accept() -> bool:
            pids = self.worker_pids()
            return len(pids) == workers and all(polls(pid, inode) for pid in pids)

        self.wait_for(all_accept, _BOOT_S, f"{workers} workers that accept")

    def _answers(self) -> bool:
        # Until a worker serves, the kernel accepts and nobody answers.
        try:
            with self.connect(timeout=_BOOT_S) as connection:
                return connection.get("/", connection="close").status > 0
        except OSError:
            return False


# What systemd does before it starts a service that it listens for (sd_listen_fds(3)).
_LAUNCHER = """
import os, sys
count = int(sys.argv[1])
passed = [os.dup(int(fd)) for fd in sys.argv[2 : 2 + count]]
for number, fd in enumerate(passed, 3):
    os.dup2(fd, number)
    os.set_inheritable(number, True)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


def _activation(sockets: Sequence[socket]) -> list[str]:
    if not sockets:
        return []
    fds = [str(each.fileno()) for each in sockets]
    return [sys.executable, "-c", _LAUNCHER, str(len(fds)), *fds]


def inherited_path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def environment(directory: Path, extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return the test's own environment without what configures a gunicorn."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GUNICORN_") and name != "WEB_CONCURRENCY"
    }
    private = {
        # gunicorn keeps its control socket here, by one name for all servers.
        "XDG_RUNTIME_DIR": str(directory),
        # The embedded store that no test has named.
        "XDG_STATE_HOME": str(directory),
        # An older gunicorn may be on the test's own (see .ci/run).
        "PYTHONPATH": os.pathsep.join([str(APPS), str(EXAMPLES), *inherited_path()]),
        "PYTHONUNBUFFERED": "1",
        # Or a configuration file that a test changes within a second is read from the cache.
        # What does not change has been compiled before (see pytest_sessionstart).
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**inherited, **private, **(extra or {})}
