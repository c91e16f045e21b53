"""Which processes wait for connections at a listener: what the kernel says of it (Linux)."""

import re
from pathlib import Path

_LISTENS = "0A"
_WATCHED = re.compile(r"^tfd:.* ino:(\w+)", re.MULTILINE)


def listener_inode(port: int) -> int:
    """Return the inode of the socket that listens on 127.0.0.1 (or on all addresses) at `port`."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
            return int(fields[9])
    raise AssertionError(f"nobody listens at port {port}")


def polls(pid: int, inode: int) -> bool:
    """True if the process has the socket in an epoll set, as a worker that accepts has."""
    return any(inode in _polled(descriptor) for descriptor in _fds(pid))


def _fds(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fdinfo").iterdir())
    except OSError:  # the process has ended
        return []


def _polled(descriptor: Path) -> set[int]:
    try:
        return {
            int(found, 16)
            for found in re.findall(r"^tfd:.* ino:(\w+)", descriptor.read_text(), re.M)
        }
    except OSError:
        return set()
