"""A child process in a session of its own, so that all it ever forks can be found."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM

from tests.harness.processes import describe, kill_session, session
from tests.harness.waiting import wait_until

# Orphans are ended by the kernel and by init, after their parent.
_SETTLE_S = 3


def find_program(name: str) -> str:
    """Return the path. Servers live in /usr/sbin, which an ordinary user's PATH may lack."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert found, f"{name} is not installed: run tests/install-system-packages"
    return found


class Process:
    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.directory = directory
        self.log_path = directory / f"{name}.log"
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=env,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def __repr__(self) -> str:
        state = "running" if self.running() else f"exit {self._child.returncode}"
        return f"<{self.name} pid={self.pid} {state}>"

    def running(self) -> bool:
        return self._child.poll() is None

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def wait_exit(self, timeout: float) -> int:
        """Return the exit status, negative for a signal; fail after `timeout` seconds."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.report(f"did not exit in {timeout:g} s")) from None

    def wait_for(self, ready: Callable[[], object], timeout: float, what: str) -> None:
        """Wait until `ready` is true; fail at once if the process ends before."""

        def ready_or_dead() -> object:
            return ready() or not self.running()

        try:
            wait_until(ready_or_dead, timeout, what)
        except AssertionError as error:
            raise AssertionError(self.report(str(error))) from None
        assert self.running(), self.report(f"exited with {self._child.returncode} before: {what}")

    def stop(self, number: int = SIGTERM, timeout: float = 40) -> None:
        """Stop the process and check that none of its session is left. May be repeated."""
        try:
            if self.running():
                self.signal(number)
                self.wait_exit(timeout)
            wait_until(
                lambda: not session(self.pid), _SETTLE_S, f"the end of all processes of {self.name}"
            )
        except AssertionError:
            left = [describe(process) for process in session(self.pid)]
            self.kill()
            raise AssertionError(self.report(f"left behind: {left}")) from None

    def kill(self) -> None:
        kill_session(self.pid)
        self._child.wait(10)

    def report(self, complaint: str) -> str:
        return f"{self!r}: {complaint}\n--- {self.log_path.name} ---\n{self.log_text()}"
