"""All processes of one session (in the sense of setsid): what a server has ever forked."""

import os

import psutil


def session(leader: int) -> list[psutil.Process]:
    """The living processes of the session; the dead that nobody has waited for do not count."""
    return [process for process in psutil.process_iter() if _session_of(process) == leader]


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.name()} {process.cmdline()}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


def kill_session(leader: int) -> None:
    for process in session(leader):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _session_of(process: psutil.Process) -> int | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
