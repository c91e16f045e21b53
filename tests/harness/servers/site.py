"""A server whose code and configuration a test changes while it runs."""

import signal
from typing import Any

import gunicorn

from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import Load, Report
from tests.harness.processes import has_ended
from tests.harness.programs import Programs
from tests.harness.servers.deploy import APP, GOOD, deploy
from tests.harness.view import KINDS, PATIENCE_S, View
from tests.harness.waiting import wait_until

READY_MADE = "from gunicorn_cluster_ext.conf import *\n"


def for_each(workers: int) -> list[bytes]:
    """Requests for each worker: those of nobody stay where their connections are."""
    cookies = [{"Cookie": f"gunicorn_worker={slot}"} for slot in range(workers)]
    return [request_bytes("GET", "/", cookie) for cookie in cookies]


def failures(report: Report, kind: str) -> list[str]:
    """Those that are not the worker class's own.

    gthread before gunicorn 27 may close a kept-alive connection whose next request has come.
    """
    own = kind == "gthread" and gunicorn.version_info < (27,)
    return [str(each) for each in report.failures if not own or each.pid is None]


class Site:
    """`settings` are those of the configuration file, by name; `hooks` is the rest of it."""

    def __init__(
        self, programs: Programs, app: str, code: str, hooks: str, settings: dict[str, Any]
    ) -> None:
        self.directory = programs.new_directory()
        self.hooks = hooks
        self.settings: dict[str, Any] = {
            "workers": 3,
            # With more threads than one, gunicorn makes gthread of sync.
            "threads": 1 if settings.get("worker_class") == "sync" else 8,
            "keepalive": 60,
            **settings,
        }
        deploy(self.directory, code)
        bind = None if "bind" in settings else "127.0.0.1:0"
        self.server = programs.gunicorn(
            app, directory=self.directory, config=self._text(), bind=bind, wait=False
        )
        self.view = View(self.server)
        self.pids = self.view.wait_slots(self.settings["workers"])

    def _text(self) -> str:
        lines = [f"{name} = {value!r}" for name, value in self.settings.items()]
        # Our own workers bring the pack by themselves.
        header = "" if self.settings["worker_class"] in KINDS else READY_MADE
        return "\n".join([header, *lines, self.hooks])

    def configure(self, **settings: Any) -> None:
        """Change some settings. Nobody knows before the next HUP."""
        self.settings |= settings
        self.server.config_path.write_text(self._text())

    def deploy(self, code: str) -> None:
        deploy(self.directory, code)

    def hup(self) -> None:
        self.server.signal(signal.SIGHUP)

    def roll(self, state: RollState = RollState.COMMITTED) -> Roll:
        """HUP, and wait for the end that the roll is to have."""
        number = self.view.roll.number + 1
        self.hup()
        return self.view.wait_roll(number, state)

    def load(self, **options: Any) -> Load:
        return Load(self.server.address, **options)

    def check_renewed(self, before: dict[int, int], generation: int | None = None) -> None:
        """Check that every slot has a new process, and that nothing is left of the old ones."""
        pids = self.view.wait_slots(len(before), generation=generation)
        assert not set(pids.values()) & set(before.values())
        # They say on the board that they are gone; to be reaped takes a moment more.
        for pid in before.values():
            wait_until(lambda pid=pid: has_ended(pid), PATIENCE_S, f"the end of {pid}")

    def worker_pids(self) -> list[int]:
        return self.server.worker_pids()

    def wait_answering(self) -> None:
        self.server.wait_answering()

    def lines(self, words: str) -> list[str]:
        """The lines of the log with these words."""
        return [line for line in self.server.log_text().splitlines() if words in line]


class StartSite:
    """`kind` is the worker class, if the settings name no other."""

    def __init__(self, programs: Programs, kind: str) -> None:
        self._programs = programs
        self._kind = kind

    def __call__(self, app: str = APP, code: str = GOOD, hooks: str = "", **settings: Any) -> Site:
        settings = {"worker_class": self._kind, **settings}
        return Site(self._programs, app, code, hooks, settings)
