"""A server's private directory, for what other processes of its user may look at."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gunicorn_cluster_ext.runtime.procfs import is_alive

_NAME = re.compile(r"gunicorn-cluster-(\d+)-\w+")


def make_directory(base: str | None, uid: int, gid: int) -> Path:
    """A new private directory for this server's files, owned by the workers' user.

    Without ``base`` memory file systems are tried first, because a board on a disk is
    written back to it. What dead servers of this user left there is removed. Raises OSError
    when no place can be written.
    """
    import tempfile  # it takes longer to import than the command line needs to find a directory

    error: OSError = OSError("no directory to try")
    for candidate in [base] if base else _places():
        try:
            _remove_stale(Path(candidate), {os.geteuid(), uid})
            made = tempfile.mkdtemp(prefix=f"gunicorn-cluster-{os.getpid()}-", dir=candidate)
        except OSError as failed:
            error = failed
            continue
        if os.geteuid() == 0:
            os.chown(made, uid, gid)
        return Path(made)
    raise error


def bus_socket(directory: Path, seat: int, generation: int) -> Path:
    """Return the path of the socket on which that process receives the bus's messages."""
    return directory / f"bus-{seat}-{generation}"


def give_away(file: int, directory: Path) -> None:
    """Let an open file in a private directory belong to whom the directory does. For root only."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)


def _places() -> list[str]:
    """The best first. Those for temporary files are the ones that ``tempfile`` knows."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    memory = ["/dev/shm"] if sys.platform == "linux" else []
    chosen = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    places = [runtime, *memory, *chosen, "/tmp", "/var/tmp"]
    return list(dict.fromkeys(place for place in places if place))


def directories(base: str | None = None) -> Iterator[tuple[int, Path]]:
    """The private directories of servers, with their masters' pids."""
    for place in [base] if base else _places():
        for path in Path(place).glob("gunicorn-cluster-*"):
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                yield int(match[1]), path


def _remove_stale(base: Path, users: set[int]) -> None:
    import shutil

    for pid, path in directories(str(base)):
        if path.lstat().st_uid in users and not is_alive(pid):
            shutil.rmtree(path, ignore_errors=True)
