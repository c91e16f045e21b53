"""Fixtures that start real programs. Each is stopped, and checked to be gone, after the test."""

import compileall
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import gunicorn_cluster_ext
from gunicorn_cluster_ext.session import cookie
from tests.harness.process import Process
from tests.harness.programs import (
    Programs,
    Shared,
    StartBrowser,
    StartGunicorn,
    StartHaproxy,
    StartNginx,
    StartNode,
    StartRedis,
)
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.gunicorn import APPS, EXAMPLES, Gunicorn
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import STICKY


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile once what every server imports, since servers write no bytecode themselves."""
    if not hasattr(session.config, "workerinput"):  # not in pytest-xdist's processes
        for directory in (Path(gunicorn_cluster_ext.__file__).parent, APPS, EXAMPLES):
            compileall.compile_dir(directory, quiet=2)


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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def programs() -> Iterator[Programs]:
    started = Programs()
    yield started
    started.close()


@pytest.fixture
def new_directory(programs: Programs) -> Callable[[], Path]:
    return programs.new_directory


@pytest.fixture
def at_exit(programs: Programs) -> ExitStack:
    """What is registered here is undone in reverse order, before directories are removed."""
    return programs.at_exit


@pytest.fixture
def keep(programs: Programs) -> Callable[[Process], Process]:
    return programs.keep


@pytest.fixture
def gunicorn(programs: Programs) -> StartGunicorn:
    return programs.gunicorn


@pytest.fixture
def kind() -> str:
    """The worker class; tests that are marked EVERY_KIND run once with each."""
    return STICKY


@pytest.fixture
def sticky(gunicorn: StartGunicorn, kind: str) -> StartGunicorn:
    """Starts a gunicorn with that worker class."""
    return with_class(gunicorn, kind)


def with_class(start: StartGunicorn, kind: str) -> StartGunicorn:
    return lambda app, *args, **options: start(app, "-k", kind, *args, **options)


@pytest.fixture
def site(programs: Programs, kind: str) -> StartSite:
    """Starts a server of three workers (see Site), and waits until all serve."""
    return StartSite(programs, kind)


@pytest.fixture
def redis(programs: Programs) -> StartRedis:
    return programs.redis


@pytest.fixture
def nginx(programs: Programs) -> StartNginx:
    return programs.nginx


@pytest.fixture
def haproxy(programs: Programs) -> StartHaproxy:
    return programs.haproxy


@pytest.fixture
def node(programs: Programs) -> StartNode:
    return programs.node


@pytest.fixture
def browser(programs: Programs) -> StartBrowser:
    return programs.browser


# --- servers that the tests of a module share, since they only ask them ---------------------------


@pytest.fixture(scope="module")
def module_programs() -> Iterator[Programs]:
    started = Programs()
    yield started
    started.close()


@pytest.fixture(scope="module")
def _shared_gunicorns(module_programs: Programs) -> Shared[Gunicorn]:
    return Shared(module_programs.gunicorn)


@pytest.fixture
def shared_gunicorn(_shared_gunicorns: Shared[Gunicorn]) -> Iterator[StartGunicorn]:
    """As `gunicorn`; the tests of the module that say the same get the same server."""
    yield _shared_gunicorns
    _shared_gunicorns.check_unharmed()


@pytest.fixture
def shared_sticky(shared_gunicorn: StartGunicorn, kind: str) -> StartGunicorn:
    """As `sticky`, shared."""
    return with_class(shared_gunicorn, kind)


@pytest.fixture(scope="module")
def _shared_sites(module_programs: Programs) -> Shared[Site]:
    return Shared(StartSite(module_programs, STICKY))


@pytest.fixture
def shared_site(_shared_sites: Shared[Site]) -> Iterator[Callable[..., Site]]:
    """As `site`; the tests of the module that say the same get the same server."""
    yield _shared_sites
    _shared_sites.check_unharmed()
