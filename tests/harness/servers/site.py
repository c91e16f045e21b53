"""A server whose code and configuration a test changes while it runs."""

import signal
from contextlib import AbstractContextManager
from typing import Any

import gunicorn

from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from tests.harness.clients.command import Done, Running, run_command, running_command
from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import Load, Report
from tests.harness.processes import has_ended
from tests.harness.programs import Programs
from tests.harness.servers.deploy import APP, GOOD, deploy
from tests.harness.view import KINDS, PATIENCE_S, View
from tests.harness.waiting import wait_until

READY_MADE = "from gunicorn_cluster_ext.conf import *\n"


def for_each(workers: int) -> list[bytes]:
    """Return a request for each worker; one without a cookie stays where its connection is."""
    cookies = [{"Cookie": f"gunicorn_worker={slot}"} for slot in range(workers)]
    return [request_bytes("GET", "/", cookie) for cookie in cookies]


def failures(report: Report, kind: str) -> list[str]:
    """Return the failures that are not known ones of the worker class.

    gthread before gunicorn 27 may close a kept-alive connection whose next request has come.
    """
    own = kind == "gthread" and gunicorn.version_info < (27,)
    return [str(each) for each in report.failures if not own or each.pid is None]


class Site:
    """A server; `settings` are written into its configuration file, then the code `hooks`."""

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
        self.view = View(self.server, cluster_dir=self.settings.get("cluster_dir"))
        self.pids = self.view.wait_slots(self.settings["workers"])
        self._log_begin = 0

    def _text(self) -> str:
        lines = [f"{name} = {value!r}" for name, value in self.settings.items()]
        # Our own workers bring the pack by themselves.
        header = "" if self.settings["worker_class"] in KINDS else READY_MADE
        return "\n".join([header, *lines, self.hooks])

    def configure(self, **settings: Any) -> None:
        """Change settings in the configuration file; they take effect at the next HUP."""
        self.settings |= settings
        self.server.config_path.write_text(self._text())

    def deploy(self, code: str) -> None:
        deploy(self.directory, code)

    def hup(self) -> None:
        self.server.signal(signal.SIGHUP)

    def roll(self, state: RollState = RollState.COMMITTED) -> Roll:
        """Send HUP and wait until the roll is in that state."""
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

    def command(self, *arguments: str, **env: str) -> Done:
        """Run `gunicorn-cluster` for this server."""
        choice = ("--dir", str(self.directory))
        return run_command(*arguments, *choice, directory=self.directory, env=env)

    def running_command(self, *arguments: str) -> AbstractContextManager[Running]:
        choice = ("--pid", str(self.server.pid))
        return running_command(*arguments, *choice, directory=self.directory)

    def lines(self, words: str) -> list[str]:
        """Return the lines of the log that contain these words."""
        log = self.server.log_text()[self._log_begin :]
        return [line for line in log.splitlines() if words in line]

    def reset(self) -> None:
        """Restore the good deploy and the configuration, for another test on this server."""
        self.deploy(GOOD)
        self.configure()
        self.pids = self.view.wait_slots(self.settings["workers"])
        self._log_begin = len(self.server.log_text())


class StartSite:
    """Starts a Site; `kind` is the worker class, if the settings name no other."""

    def __init__(self, programs: Programs, kind: str) -> None:
        self._programs = programs
        self._kind = kind

    def __call__(self, app: str = APP, code: str = GOOD, hooks: str = "", **settings: Any) -> Site:
        settings = {"worker_class": self._kind, **settings}
        return Site(self._programs, app, code, hooks, settings)
