"""Inboxes: the socket pairs through which workers hand connections to each other.

Each seat has one, made by the arbiter before the first fork. All workers hold all ends, and the
arbiter never closes them, so a connection queued for a worker that dies is read by the process
that takes its seat next.

    one message      SCM_RIGHTS   [ the connection's fd ]
                     data         MessagePack array: received | client | server | requests
                                         | hops | owned | proxied

``SOCK_SEQPACKET`` keeps message boundaries. A connected pair queues as many messages as its buffer
holds (278 small ones were counted); a *bound* datagram socket would queue
``net.unix.max_dgram_qlen``, often 10.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from typing import Final

import msgspec

from gunicorn_cluster_ext.runtime.fd_passing import (
    ANCILLARY_BYTES,
    MSG_CMSG_CLOEXEC,
    received_fd,
    rights,
)

# macOS has no SOCK_SEQPACKET for Unix sockets.
_SOCKET_TYPE: Final = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET
# Plain ints: the socket module's flags are enums, and slow to combine.
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT) | MSG_CMSG_CLOEXEC
# Errors of a full inbox, or of too many descriptors in flight (unix(7), ETOOMANYREFS).
_FULL: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMSGSIZE)
_INT: Final = struct.Struct("i")
_INT_BUFFER: Final = bytes(_INT.size)
#: The kernel memory that a queued connection with a usual head takes.
_QUEUED_BYTES: Final = 1280

#: The most bytes that travel with a connection. A request with a longer head is served by the
#: worker that accepted it.
MAX_RECEIVED: Final = 64 * 1024

#: An address in gunicorn's form: a tuple for TCP, a path for a Unix socket.
Address = tuple[str | int, ...] | str


class HandoffMessage(msgspec.Struct, array_like=True, frozen=True):
    """A connection on its way to another worker.

    ``received`` are the bytes already read from it, starting at a request.
    ``client`` and ``server`` are the addresses as gunicorn knows them. ``requests`` counts the
    requests served on it so far, and ``hops`` its hand-offs since the last of them.
    ``owned`` is true if the receiver owns the request and need not route it. ``proxied`` is the
    PROXY protocol header that the connection began with; until the first request has been served
    ``received`` contains it, too.
    """

    received: bytes
    client: Address
    server: Address
    requests: int
    hops: int
    owned: bool
    proxied: bytes = b""


def plain_address(address: str | bytes | tuple[str | int, ...]) -> Address:
    """Return an address as a message can carry it.

    Abstract Unix names are bytes in Python, and a client may bind its socket to a name that is no
    UTF-8, which Python spells with surrogates.
    """
    if isinstance(address, bytes):
        return address.decode("latin-1")
    if isinstance(address, str) and not address.isascii():
        return address.encode(errors="replace").decode()
    return address


class LostDescriptor(OSError):
    """A hand-off arrived without its connection, because the process has too many open files."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HandoffMessage).decode


class Inboxes:
    """The inboxes of all seats. The arbiter opens them and the workers use them."""

    def __init__(self, seats: int) -> None:
        self._readers: list[socket.socket] = []
        self._writers: list[socket.socket] = []
        buffer = bytearray(MAX_RECEIVED + 1024)
        self._buffers = (buffer,)
        self._view = memoryview(buffer)
        for _ in range(seats):
            reader, writer = socket.socketpair(socket.AF_UNIX, _SOCKET_TYPE)
            # If a configuration has patched the socket module, these are gevent's sockets, which
            # wait whatever the flags say.
            reader.setblocking(False)
            writer.setblocking(False)
            self._readers.append(reader)
            self._writers.append(writer)

    def close(self) -> None:
        for end in self._readers + self._writers:
            end.close()

    def reader(self, seat: int) -> socket.socket:
        """Return the socket to poll for ``seat``."""
        return self._readers[seat]

    def send(self, seat: int, message: HandoffMessage, fd: int) -> bool:
        """Hand the connection ``fd`` to ``seat`` without blocking; return False if the inbox is
        full.

        After True the caller closes its own copy of ``fd``.
        """
        try:
            self._writers[seat].sendmsg((_encode(message),), rights(fd), _SEND_FLAGS)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def queued(self, seat: int) -> int:
        """Return about how many connections ``seat`` has yet to receive, on Linux; elsewhere 0.

        It is computed from the kernel memory that they take: one takes 768 bytes or, with most
        heads, 1,280, and twice that each time the message doubles.
        """
        if sys.platform != "linux":
            return 0
        size = fcntl.ioctl(self._writers[seat].fileno(), termios.TIOCOUTQ, _INT_BUFFER)
        return -(-int(_INT.unpack(size)[0]) // _QUEUED_BYTES)

    def receive(self, seat: int) -> tuple[HandoffMessage, int] | None:
        """Return the next connection handed to ``seat``, or None, without blocking.

        Raise LostDescriptor if this process could not open it.
        """
        try:
            size, ancillary, flags, _ = self._readers[seat].recvmsg_into(
                self._buffers, ANCILLARY_BYTES, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return None
        fd = received_fd(ancillary, flags)
        if fd < 0:
            raise LostDescriptor(errno.EMFILE, "a handed-off connection was lost: raise ulimit -n")
        return _decode(self._view[:size]), fd
