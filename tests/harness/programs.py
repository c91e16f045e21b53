"""Real programs for one test, or for all tests of a module; none is left afterwards."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tests.harness.clients.browser import Browser
from tests.harness.clients.node import Node
from tests.harness.process import Process
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.haproxy import Haproxy
from tests.harness.servers.nginx import Nginx
from tests.harness.servers.redis import Redis

P = TypeVar("P", bound=Process)

StartGunicorn = Callable[..., Gunicorn]
StartRedis = Callable[..., Redis]
StartNginx = Callable[[str], Nginx]
StartHaproxy = Callable[[str], Haproxy]
StartNode = Callable[..., Node]
StartBrowser = Callable[[], Browser]


class Programs:
    """Starts programs; `close` stops them in reverse order and checks that nothing is left."""

    def __init__(self) -> None:
        self.at_exit = ExitStack()
        self._directories: list[Path] = []

    def close(self) -> None:
        try:
            self.at_exit.close()
        finally:
            for directory in self._directories:
                shutil.rmtree(directory)

    def new_directory(self) -> Path:
        """Make a private directory with a name short enough for a Unix socket."""
        self._directories.append(Path(tempfile.mkdtemp(prefix="gce-")))
        return self._directories[-1]

    def keep(self, process: P) -> P:
        """Stop a process at the end; its log is shown if the test fails."""

        def stop() -> None:
            try:
                process.stop()
            finally:
                print(process.report("stopped"))

        self.at_exit.callback(stop)
        return process

    def gunicorn(
        self,
        app: str,
        *args: str,
        wait: bool = True,
        serving: int | None = None,
        directory: Path | None = None,
        **options: Any,
    ) -> Gunicorn:
        """Start a gunicorn (see Gunicorn for the arguments) and wait until it answers.

        `serving=4` waits instead until 4 workers accept; `wait=False` does not wait;
        `directory` is one that the test has prepared.
        """
        server = self.keep(Gunicorn(directory or self.new_directory(), app, *args, **options))
        if serving is not None:
            server.wait_serving(serving)
        elif wait:
            server.wait_answering()
        return server

    def redis(self, *args: str, port: int | None = None) -> Redis:
        server = self.keep(Redis(self.new_directory(), *args, port=port))
        server.wait_ready()
        return server

    def nginx(self, blocks: str) -> Nginx:
        server = self.keep(Nginx(self.new_directory(), blocks))
        server.wait_ready()
        return server

    def haproxy(self, sections: str) -> Haproxy:
        server = self.keep(Haproxy(self.new_directory(), sections))
        server.wait_ready()
        return server

    def node(self, script: str, *args: str) -> Node:
        return self.keep(Node(self.new_directory(), script, *args))

    def browser(self) -> Browser:
        """Start a browser, after the server that it visits, so that it is stopped before it."""
        started = Browser(self.new_directory())
        self.at_exit.callback(started.stop)
        return started


class Server(Protocol):
    """A server that tests can share: a Gunicorn or a Site."""

    def worker_pids(self) -> list[int]: ...

    def wait_answering(self) -> None: ...


S = TypeVar("S", bound=Server)


class Shared(Generic[S]):
    """Servers that the tests of a module share; each is started when it is first asked for.

    After each test, the servers that it used must answer and have the same workers, so a test
    that harms one fails itself, and not a later one.
    """

    def __init__(self, start: Callable[..., S]) -> None:
        self._start = start
        self._started: dict[str, S] = {}
        self._used: dict[str, list[int]] = {}

    def __call__(self, *args: Any, **options: Any) -> S:
        """Return the server with these arguments."""
        key = repr((args, sorted(options.items())))
        if key not in self._started:
            self._started[key] = self._start(*args, **options)
        found = self._started[key]
        self._used.setdefault(key, found.worker_pids())
        return found

    def check_unharmed(self) -> None:
        used, self._used = self._used, {}
        for key, pids in used.items():
            # One that is harmed stays away from the next test.
            server = self._started.pop(key)
            server.wait_answering()
            assert server.worker_pids() == pids
            self._started[key] = server
