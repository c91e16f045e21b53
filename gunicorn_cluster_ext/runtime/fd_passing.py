"""Open files passed between processes over Unix sockets, one with a message (SCM_RIGHTS, unix(7)).

Both ends call sendmsg and recvmsg themselves: ``socket.recv_fds`` ignores its flags on Python 3.11,
and a received file must not be inherited by programs that the application starts.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

_FD: Final = struct.Struct("i")
_pack, _unpack = _FD.pack, _FD.unpack
_SOL_SOCKET: Final = socket.SOL_SOCKET
_SCM_RIGHTS: Final = socket.SCM_RIGHTS
# Plain ints: the socket module's flags are enums, and slow to combine.
_MSG_CTRUNC: Final = int(socket.MSG_CTRUNC)

#: What recvmsg needs besides the message: room for one file, and the flag that closes it in
#: programs (not on macOS).
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_FD.size)
MSG_CMSG_CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))

#: What ``received_fd`` returns for a message without a file, and for a file that the kernel dropped
#: because this process could not open it (it has too many open files).
NO_FD: Final = -1
LOST_FD: Final = -2


def rights(fd: int) -> tuple[tuple[int, int, bytes]]:
    """Return the ancillary data with which sendmsg passes ``fd``."""
    return ((_SOL_SOCKET, _SCM_RIGHTS, _pack(fd)),)


def received_fd(ancillary: list[Any], flags: int) -> int:
    """Return the file that recvmsg received, NO_FD or LOST_FD."""
    if flags & _MSG_CTRUNC:
        return LOST_FD
    fd: int = _unpack(ancillary[0][2])[0] if ancillary else NO_FD
    return fd
