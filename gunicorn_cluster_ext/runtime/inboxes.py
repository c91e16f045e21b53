"""Inboxes, through which workers hand connections to each other.

Each seat has one: a socket pair made by the arbiter before the first fork. All workers hold
all ends, and the arbiter keeps them open for ever, so what is queued for a worker that dies
is read by the process that takes its seat next.

    one message      SCM_RIGHTS   [ the connection's fd ]
                     data         MessagePack array: received | client | server | requests
                                         | hops | owned | proxied

``SOCK_SEQPACKET`` keeps messages apart and, as a connected pair, queues as many as its
buffer holds (278 small ones were counted), where a *bound* datagram socket would queue
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

# macOS has no SOCK_SEQPACKET for Unix sockets.
_KIND: Final = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET
# recvmsg takes these flags on Linux; socket.recv_fds() ignores its own on Python 3.11.
# Plain ints: the socket module's flags are enums, and slow to combine.
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
# What a full inbox, or too many fds under way (unix(7), ETOOMANYREFS), looks like.
_FULL: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMSGSIZE)
_FD: Final = struct.Struct("i")
_NO_SIZE: Final = bytes(_FD.size)
_MEMORY: Final = 1280
_ANCILLARY: Final = socket.CMSG_SPACE(_FD.size)

#: The most bytes that travel with a connection. Requests with a longer head are served
#: where they arrive.
MAX_RECEIVED: Final = 64 * 1024

#: As gunicorn has it: a tuple for TCP, a path for a Unix socket.
Address = tuple[str | int, ...] | str


class HandoffMessage(msgspec.Struct, array_like=True, frozen=True):
    """A connection on its way to another worker.

    ``received`` are the bytes already read from it, from the start of a request on.
    ``client`` and ``server`` are the addresses as gunicorn knows them. ``requests`` were
    served on it before; ``hops`` is how often it has been handed on since the last one.
    ``owned``: the receiver owns the request, so it need not look again. ``proxied`` is the PROXY
    protocol header that the connection began with; ``received`` has it as well before the first
    request is served.
    """

    received: bytes
    client: Address
    server: Address
    requests: int
    hops: int
    owned: bool
    proxied: bytes = b""


def plain_address(address: str | bytes | tuple[str | int, ...]) -> Address:
    """Return an address as a message can carry it: abstract Unix names are bytes in Python."""
    return address.decode("latin-1") if isinstance(address, bytes) else address


class LostDescriptor(OSError):
    """A hand-off arrived without its connection: the process has too many open files."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HandoffMessage).decode


class Inboxes:
    """The inboxes of all seats. Opened in the arbiter, used in the workers."""

    def __init__(self, seats: int) -> None:
        self._readers: list[socket.socket] = []
        self._writers: list[socket.socket] = []
        self._buffer = bytearray(MAX_RECEIVED + 1024)
        self._view = memoryview(self._buffer)
        for _ in range(seats):
            reader, writer = socket.socketpair(socket.AF_UNIX, _KIND)
            # For sockets of gevent's, where a configuration has patched already: they wait
            # whatever the flags say.
            reader.setblocking(False)
            writer.setblocking(False)
            self._readers.append(reader)
            self._writers.append(writer)

    def close(self) -> None:
        for end in self._readers + self._writers:
            end.close()

    def reader(self, seat: int) -> socket.socket:
        """What to poll for ``seat``."""
        return self._readers[seat]

    def send(self, seat: int, message: HandoffMessage, fd: int) -> bool:
        """Hand the connection ``fd`` to ``seat``; False when the inbox is full.

        The caller closes its own copy of ``fd`` after True. Never blocks.
        """
        rights = ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(fd)),)
        try:
            self._writers[seat].sendmsg((_encode(message),), rights, _SEND_FLAGS)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def queued(self, seat: int) -> int:
        """About how many connections ``seat`` has not received yet. Known on Linux only.

        The kernel says what memory they take. For one it is 768 bytes or, with most heads, 1,280;
        doubled as often as the message doubles.
        """
        if sys.platform != "linux":
            return 0
        size = fcntl.ioctl(self._writers[seat].fileno(), termios.TIOCOUTQ, _NO_SIZE)
        return -(-int(_FD.unpack(size)[0]) // _MEMORY)

    def receive(self, seat: int) -> tuple[HandoffMessage, int] | None:
        """The next connection handed to ``seat``, or None. Never blocks.

        Raises LostDescriptor when the connection did not fit into this process.
        """
        try:
            size, ancillary, flags, _ = self._readers[seat].recvmsg_into(
                (self._buffer,), _ANCILLARY, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return None
        if flags & _TRUNCATED or not ancillary:
            raise LostDescriptor(errno.EMFILE, "a handed-off connection was lost: raise ulimit -n")
        (fd,) = _FD.unpack(ancillary[0][2])
        return _decode(self._view[:size]), fd
