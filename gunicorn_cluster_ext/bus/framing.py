"""What goes over a lane of the bus: messages as bytes, and bytes as messages. No I/O.

    one frame      4 bytes   the length of what follows, little-endian
                   n bytes   MessagePack array: channel | body

A large message's body is a number, its size: the bytes are in a file that comes with the frame.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

#: Larger messages travel as a file: one copy for all receivers, and no lane is ever held up by
#: the bytes of one message.
LARGE: Final = 64 * 1024
#: So a frame without its body is small, whatever the channel.
MAX_CHANNEL: Final = 255

_LENGTH: Final = struct.Struct("<I")


class Letter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message: ``body``, or the size of the file that has it."""

    channel: str
    body: bytes | int


class BadFrame(ValueError):
    """Bytes that no sender of this version has written."""


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(Letter).decode


def check(channel: object, body: object = b"") -> None:
    """Raises TypeError, or ValueError when the channel's name is too long."""
    if not isinstance(channel, str) or not isinstance(body, bytes | bytearray):
        kinds = f"{type(channel).__name__} and {type(body).__name__}"
        raise TypeError(f"a channel is a str and a message is bytes, not {kinds}")
    if len(channel) > MAX_CHANNEL:
        raise ValueError(f"a channel of {len(channel)} characters: {MAX_CHANNEL} are allowed")


def frame(channel: str, body: bytes | int) -> bytearray:
    """One message as it goes over a lane."""
    data = bytearray(_LENGTH.size)
    _encode_into(Letter(channel, body), data, _LENGTH.size)
    _LENGTH.pack_into(data, 0, len(data) - _LENGTH.size)
    return data


class Splitter:
    """Takes bytes as they come, and gives messages."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """``data`` came next. Call when ``next`` has answered None."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> Letter | None:
        """The next whole message, or None. Raises BadFrame."""
        data, begin = self._data, self._at + _LENGTH.size
        if begin > len(data):
            return None
        end = begin + _LENGTH.unpack_from(data, self._at)[0]
        if end > len(data):
            # Nobody sends more than that, so it is not waited for.
            if end - begin > 2 * LARGE:
                raise BadFrame(f"a frame of {end - begin} bytes")
            return None
        self._at = end
        try:
            return _decode(memoryview(data)[begin:end])
        except msgspec.DecodeError as error:
            raise BadFrame(f"a frame that cannot be decoded: {error}") from None
