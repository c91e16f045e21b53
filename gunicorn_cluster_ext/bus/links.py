"""Lanes, over which workers send each other messages.

A worker that listens has a named socket in the server's private directory. Who has something for
it connects: each pair of processes that talks has a lane of its own, a stream. So

* a server whose workers do not use the bus has no file, socket or thread for it;
* what one sender sends fills no other's lane, and is read in order;
* a lane ends with either process: nothing is left over for who sits in the seat next;
* a process that is no worker sends in the same way as a worker.

Large messages are files in memory (sealed, so nobody can change or shorten them), passed by
descriptor. The receiver reads the file, instead of mapping it: the bytes are copied once, straight
to where they stay. Then it answers with one byte, so the sender knows how much is under way.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

try:
    import fcntl

    _SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
except AttributeError:  # no seals: not Linux
    _SEALS = 0

#: What a lane takes until its reader comes (the kernel doubles it). Twice the usual.
_BUFFER: Final = 256 << 10
_BACKLOG: Final = 1_024
#: Bytes of a socket's path (macOS allows 103).
_LONGEST: Final = 103
_FD: Final = struct.Struct("i")
_ANCILLARY: Final = socket.CMSG_SPACE(_FD.size)
#: Errors that pass: too little memory, too many open files, here or under way (unix(7)).
SHORTAGES: Final = (errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
# A plain int: the socket module's flags are enums, and slow.
_RECEIVE_FLAGS: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED: Final = int(socket.MSG_CTRUNC)


def listen(where: Path) -> socket.socket:
    """Raises OSError."""
    if len(os.fsencode(where)) > _LONGEST:
        raise OSError(errno.ENAMETOOLONG, "cluster_dir is too long for sockets", str(where))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(where))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(where: Path) -> socket.socket:
    """A new lane to the process that listens there. Never blocks. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        sock.connect(str(where))
    except BaseException:
        sock.close()
        raise
    return sock


def send(
    lane: socket.socket, buffers: Sequence[bytes | bytearray | memoryview], file: File | None
) -> int:
    """Write as much of ``buffers`` as there is room for, and the file that goes with them.

    Returns how many bytes that was. Raises OSError: BlockingIOError when there is no room.
    """
    if file is None:
        return lane.send(buffers[0]) if len(buffers) == 1 else lane.sendmsg(buffers)
    rights = ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(file.fd)),)
    return lane.sendmsg(buffers, rights)


def receive(lane: socket.socket, most: int) -> tuple[bytes, int | None, bool]:
    """The next bytes (none: the lane has ended), the file that came, whether one was lost.

    Raises OSError; BlockingIOError when there is nothing.
    """
    data, ancillary, flags, _ = lane.recvmsg(most, _ANCILLARY, _RECEIVE_FLAGS)
    fd = _FD.unpack(ancillary[0][2])[0] if ancillary else None
    return data, fd, bool(flags & _TRUNCATED)


class File:
    """A large message in memory, closed when nothing refers to this object any more."""

    def __init__(self, data: bytes) -> None:
        """Raises OSError."""
        self.fd = _new_file()
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        if _SEALS:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _new_file() -> int:
    if _SEALS:
        return os.memfd_create("gunicorn-cluster-bus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fd, name = tempfile.mkstemp(prefix="gunicorn-cluster-bus-")
    os.unlink(name)
    return fd


def read_file(fd: int, size: int) -> bytes:
    """All of a large message. Raises OSError, also when the file has another size."""
    found = os.fstat(fd).st_size
    if found != size:
        raise OSError(errno.EIO, f"its file has {found} bytes")
    data = os.pread(fd, size, 0)
    while len(data) < size:  # the kernel reads 2 GB at most
        data += os.pread(fd, size - len(data), len(data))
    return data
