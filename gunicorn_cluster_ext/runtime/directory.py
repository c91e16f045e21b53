"""The private directory of a server, with files for other processes of its user."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from gunicorn_cluster_ext.runtime.procfs import is_alive

T = TypeVar("T")

_NAME_PATTERN = re.compile(r"gunicorn-cluster-(\d+)-\w+")


def make_directory(base: str | None, uid: int, gid: int, fill: Callable[[Path], T]) -> T:
    """Make a private directory for this server's files, owned by the workers' user.

    ``fill`` is called with the new directory; what it returns is returned. Where it raises
    OSError, because the file system is full for instance, the next place is tried.

    Without ``base`` this tries memory file systems first, because the kernel writes a board on a
    disk back to the disk. It removes what dead servers of these users have left there. Raise
    OSError if no place can be written.
    """
    # Their imports take longer than a command needs to find a directory.
    import shutil
    import tempfile

    error: OSError = OSError("no directory to try")
    for candidate in [base] if base else _places():
        made = None
        try:
            _remove_stale(Path(candidate), {os.geteuid(), uid})
            made = tempfile.mkdtemp(prefix=f"gunicorn-cluster-{os.getpid()}-", dir=candidate)
            if os.geteuid() == 0:
                os.chown(made, uid, gid)
            return fill(Path(made))
        except OSError as failed:
            error = failed
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
    raise error


def allocate(file: int, size: int) -> None:
    """Give a new file that will be mapped all of its ``size`` in bytes.

    The first touch of a hole in a full file system is SIGBUS, in the arbiter too. Raise OSError
    (ENOSPC) instead.
    """
    try:
        os.posix_fallocate(file, 0, size)
        return
    except AttributeError:  # macOS
        pass
    except OSError as error:  # some C libraries do not imitate it where a file system lacks it
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    if os.pwrite(file, bytes(size), 0) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bus_socket(directory: Path, seat: int, generation: int) -> Path:
    """Return the path of the socket on which a process receives messages of the bus."""
    return directory / f"bus-{seat}-{generation}"


def give_away(file: int, directory: Path) -> None:
    """Give an open file to the owner of its private directory. Only root needs to."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)


def _places() -> list[str]:
    """Return the places for a directory, the best first, then those that ``tempfile`` uses."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    memory = ["/dev/shm"] if sys.platform == "linux" else []
    chosen = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    places = [runtime, *memory, *chosen, "/tmp", "/var/tmp"]
    return list(dict.fromkeys(place for place in places if place))


def directories(base: str | None = None) -> Iterator[tuple[int, Path]]:
    """Yield the private directories of servers, with the pids of their masters."""
    for place in [base] if base else _places():
        for path in Path(place).glob("gunicorn-cluster-*"):
            match = _NAME_PATTERN.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                yield int(match[1]), path


def _remove_stale(base: Path, users: set[int]) -> None:
    import shutil

    for pid, path in directories(str(base)):
        if path.lstat().st_uid in users and not is_alive(pid):
            shutil.rmtree(path, ignore_errors=True)
