"""A contender's process with all its descendants, and the CPU time that they used."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from .failure import Failure

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 5.0


class Process:
    """A process in a session of its own, so that no descendant outlives ``stop``."""

    def __init__(self, command: list[str], directory: Path, env: dict[str, str]):
        self.command = command
        self.log = directory / f"{Path(command[0]).name}-{id(self):x}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        if self.popen.poll() is not None:
            raise Failure(
                f"{' '.join(self.command)}\nended with status"
                f" {self.popen.returncode}, and said:\n{self.tail()}"
            )

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def cpu_ticks(self) -> dict[int, int]:
        """Return the CPU time of every process of the tree so far, in clock ticks."""
        pids = [self.popen.pid]
        for pid in pids:  # grows while it is walked
            pids.extend(children(pid))
        return {pid: cpu_ticks(pid) for pid in pids}

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()


def children(pid: int) -> list[int]:
    # A thread can fork too, so the children of every task are listed.
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def cpu_ticks(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The name in parentheses may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    user, system = fields[11:13]
    return int(user) + int(system)
