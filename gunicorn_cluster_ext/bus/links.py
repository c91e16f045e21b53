"""Links: the stream sockets over which processes send each other messages.

A worker that subscribes listens on a named socket in the server's private directory, and a process
that has a message for it connects. Each pair of sender and receiver has a link of its own, so

* a server whose workers do not use the bus has no file, socket or thread for it;
* what one sender sends never fills the link of another, and is read in order;
* a link ends with either process: the next process in a seat inherits nothing;
* a process that is no worker sends in the same way as a worker.

A large message is a file in memory, sealed so that nobody can change or shorten it, and passed by
descriptor. The receiver reads the file instead of mapping it: the bytes are copied once, straight
to where they stay. It answers each file with one byte, so the sender knows how many are unread.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gunicorn_cluster_ext.runtime.fd_passing import (
    ANCILLARY_BYTES,
    MSG_CMSG_CLOEXEC,
    received_fd,
    rights,
)

try:
    import fcntl

    _SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
except AttributeError:  # no seals: not Linux
    _SEALS = 0

#: What a link takes before its receiver reads (the kernel doubles it): twice the usual.
_SEND_BUFFER_BYTES: Final = 256 << 10
_LISTEN_BACKLOG: Final = 1_024
#: The length of a socket's path that macOS allows; Linux allows 107.
_MAX_PATH_BYTES: Final = 103
#: Errors that pass: too little memory, too many open files, in a process or in flight (unix(7)).
SHORTAGES: Final = (errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens for links at ``path``. Raise OSError."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, "cluster_dir is too long for sockets", str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        sock.listen(_LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """Return a new link to the process at ``path``, without blocking. Raise OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def send(
    link: socket.socket, buffers: Sequence[bytes | bytearray | memoryview], file: File | None
) -> int:
    """Write as much of ``buffers`` as there is room for, and the file that goes with them.

    Return the number of bytes written. Raise OSError; BlockingIOError if there is no room.
    """
    if file is None:
        return link.send(buffers[0]) if len(buffers) == 1 else link.sendmsg(buffers)
    return link.sendmsg(buffers, rights(file.fd))


def receive(link: socket.socket, most: int) -> tuple[bytes, int]:
    """Return up to ``most`` bytes (none: the link has ended), and the file that came with them.

    Without a file that is fd_passing.NO_FD; LOST_FD if this process could not open it.
    Raise OSError; BlockingIOError if there is nothing to read.
    """
    data, ancillary, flags, _ = link.recvmsg(most, ANCILLARY_BYTES, MSG_CMSG_CLOEXEC)
    return data, received_fd(ancillary, flags)


class File:
    """A large message in memory. It is closed when the last reference to this object is gone."""

    def __init__(self, data: bytes) -> None:
        """Raise OSError if there is no memory or open file for it."""
        if _SEALS:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            self.fd = os.memfd_create("gunicorn-cluster-bus", flags)
        else:
            self.fd, name = tempfile.mkstemp(prefix="gunicorn-cluster-bus-")
            os.unlink(name)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]
        if _SEALS:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def read_file(fd: int, size: int) -> bytes:
    """Return the large message in ``fd``. Raise OSError, also if it is not ``size`` bytes long."""
    found = os.fstat(fd).st_size
    if found != size:
        raise OSError(errno.EIO, f"its file has {found} bytes")
    data = os.pread(fd, size, 0)
    while len(data) < size:  # the kernel reads 2 GB at most
        data += os.pread(fd, size - len(data), len(data))
    return data
