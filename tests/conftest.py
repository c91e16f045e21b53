"""Fixtures that start real programs. Each is stopped, and checked to be gone, after the test."""

import compileall
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gunicorn import __version__ as gunicorn_release

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


def pytest_report_header() -> str:
    return f"gunicorn {gunicorn_release}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile once what every server imports, since servers write no bytecode themselves."""
    if not hasattr(session.config, "workerinput"):  # not in pytest-xdist's processes
        for directory in (Path(gunicorn_cluster_ext.__file__).parent, APPS, EXAMPLES):
            compileall.compile_dir(directory, quiet=2)


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give embedded stores without a path a private place, here and in what tests start."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ.pop("STATE_DIRECTORY", None)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Restore SIGINT, which a shell makes ignored for what it runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget rate-limited log lines, so that each test sees its own."""
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
    """Callbacks that run in reverse order after the test, before directories are removed."""
    return programs.at_exit


@pytest.fixture
def keep(programs: Programs) -> Callable[[Process], Process]:
    return programs.keep


@pytest.fixture
def gunicorn(programs: Programs) -> StartGunicorn:
    return programs.gunicorn


@pytest.fixture
def kind() -> str:
    """The worker class; tests marked EVERY_KIND run once with each."""
    return STICKY


@pytest.fixture
def sticky(gunicorn: StartGunicorn, kind: str) -> StartGunicorn:
    """Start a gunicorn with the worker class `kind`."""
    return with_class(gunicorn, kind)


def with_class(start: StartGunicorn, kind: str) -> StartGunicorn:
    return lambda app, *args, **options: start(app, "-k", kind, *args, **options)


@pytest.fixture
def site(programs: Programs, kind: str) -> StartSite:
    """Start a server with three workers (see Site), and wait until all of them serve."""
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
    """Like `gunicorn`, but tests of a module that pass the same arguments get the same server."""
    yield _shared_gunicorns
    _shared_gunicorns.check_unharmed()


@pytest.fixture
def shared_sticky(shared_gunicorn: StartGunicorn, kind: str) -> StartGunicorn:
    """Like `sticky`, but shared as `shared_gunicorn` is."""
    return with_class(shared_gunicorn, kind)


@pytest.fixture(scope="module")
def _shared_sites(module_programs: Programs) -> Shared[Site]:
    return Shared(StartSite(module_programs, STICKY))


@pytest.fixture
def shared_site(_shared_sites: Shared[Site]) -> Iterator[Callable[..., Site]]:
    """Like `site`, but tests of this module that pass the same arguments get the same server."""
    yield _shared_sites
    _shared_sites.check_unharmed()


@pytest.fixture(scope="module")
def reset_site(module_programs: Programs) -> Callable[..., Site]:
    """Like `shared_site`, for tests that replace the workers; they must leave good ones."""
    sites = Shared(StartSite(module_programs, STICKY))

    def start(**settings: Any) -> Site:
        found = sites(**settings)
        found.reset()
        return found

    return start
