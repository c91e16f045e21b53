"""Other processes for tests that are about processes: forks, and fresh interpreters."""

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def fork() -> int:
    """Call os.fork(). The threads of pytest-xdist do no harm to the children made here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def spawn(work: Callable[[], Any]) -> int:
    """Fork a process that does `work` and ends; return its pid."""
    pid = fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def in_child(work: Callable[[], Any]) -> Any:
    """Return the result of `work` in a forked process, passed back as JSON."""
    reader, writer = os.pipe()

    def answer() -> None:
        with open(writer, "w") as file:
            json.dump(work(), file)

    pid = spawn(answer)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    assert status_of(pid) == 0, "the child failed: see its standard error"
    return json.loads(text)


def status_of(pid: int) -> int:
    """Wait for a child; return its exit status, or the negative of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_fresh_interpreter(code: str) -> str:
    """Return what `code` prints in a new interpreter that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def repeated(work: Callable[[], Any]) -> Iterator[int]:
    """Do `work` over and over in a child process, whose pid this yields."""

    def repeat() -> None:
        while True:
            work()

    pid = spawn(repeat)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
