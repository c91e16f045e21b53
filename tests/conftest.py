"""Fixtures that start real programs. Each is stopped, and checked to be gone, after the test."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gunicorn_cluster_ext.session import cookie
from tests.harness.clients.browser import Browser
from tests.harness.clients.node import Node
from tests.harness.process import Process
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.haproxy import Haproxy
from tests.harness.servers.nginx import Nginx
from tests.harness.servers.redis import Redis
from tests.harness.view import STICKY

P = TypeVar("P", bound=Process)

StartGunicorn = Callable[..., Gunicorn]
StartRedis = Callable[..., Redis]
StartNginx = Callable[[str], Nginx]
StartHaproxy = Callable[[str], Haproxy]
StartNode = Callable[..., Node]
StartBrowser = Callable[[], Browser]


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a test's own process, and what it starts, keeps an embedded store without a name."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ.pop("STATE_DIRECTORY", None)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell starts what is to run in the background with SIGINT ignored; that is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said at most every ten seconds is said in each test."""
    monkeypatch.setattr(cookie.complain_of_cookie, "_next", 0.0)


@pytest.fixture
def new_directory() -> Iterator[Callable[[], Path]]:
    """Makes private directories with names short enough for a Unix socket."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="gce-")))
        return made[-1]

    yield make
    for directory in made:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def at_exit(new_directory: Callable[[], Path]) -> Iterator[ExitStack]:
    """What is registered here is undone in reverse order, before directories go."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def keep(at_exit: ExitStack) -> Callable[[P], P]:
    """Has a process stopped after the test; its log is shown if the test fails."""

    def keep_process(process: P) -> P:
        def stop() -> None:
            try:
                process.stop()
            finally:
                print(process.report("stopped"))

        at_exit.callback(stop)
        return process

    return keep_process


@pytest.fixture
def gunicorn(
    new_directory: Callable[[], Path], keep: Callable[[Gunicorn], Gunicorn]
) -> StartGunicorn:
    """Starts a gunicorn (see Gunicorn for the arguments) and waits until it answers.

    `serving=4` waits instead until 4 workers accept; `wait=False` does not wait;
    `directory` uses one that the test has prepared.
    """

    def start(
        app: str,
        *args: str,
        wait: bool = True,
        serving: int | None = None,
        directory: Path | None = None,
        **options: Any,
    ) -> Gunicorn:
        server = keep(Gunicorn(directory or new_directory(), app, *args, **options))
        if serving is not None:
            server.wait_serving(serving)
        elif wait:
            server.wait_answering()
        return server

    return start


@pytest.fixture
def kind() -> str:
    """The worker class; tests that are marked EVERY_KIND run once with each."""
    return STICKY


@pytest.fixture
def sticky(gunicorn: StartGunicorn, kind: str) -> StartGunicorn:
    """Starts a gunicorn with that worker class."""

    def start(app: str, *args: str, **options: Any) -> Gunicorn:
        return gunicorn(app, "-k", kind, *args, **options)

    return start


@pytest.fixture
def redis(new_directory: Callable[[], Path], keep: Callable[[Redis], Redis]) -> StartRedis:
    def start(*args: str, port: int | None = None) -> Redis:
        server = keep(Redis(new_directory(), *args, port=port))
        server.wait_ready()
        return server

    return start


@pytest.fixture
def nginx(new_directory: Callable[[], Path], keep: Callable[[Nginx], Nginx]) -> StartNginx:
    def start(blocks: str) -> Nginx:
        server = keep(Nginx(new_directory(), blocks))
        server.wait_ready()
        return server

    return start


@pytest.fixture
def haproxy(new_directory: Callable[[], Path], keep: Callable[[Haproxy], Haproxy]) -> StartHaproxy:
    def start(sections: str) -> Haproxy:
        server = keep(Haproxy(new_directory(), sections))
        server.wait_ready()
        return server

    return start


@pytest.fixture
def node(new_directory: Callable[[], Path], keep: Callable[[Node], Node]) -> StartNode:
    def start(script: str, *args: str) -> Node:
        return keep(Node(new_directory(), script, *args))

    return start


@pytest.fixture
def browser(new_directory: Callable[[], Path], at_exit: ExitStack) -> StartBrowser:
    """To be started after the server that it visits: so it leaves before that stops."""

    def start() -> Browser:
        started = Browser(new_directory())
        at_exit.callback(started.stop)
        return started

    return start
