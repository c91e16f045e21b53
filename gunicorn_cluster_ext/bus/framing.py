"""Messages as the bytes of a link, and back. No I/O.

    one frame      4 bytes   the length of what follows, little-endian
                   n bytes   MessagePack array: channel | body

The body of a large message is a number, its size; its bytes are in a file that comes with the
frame.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

#: Larger messages travel as a file: all receivers share one copy, and the bytes of one message
#: never hold up a link.
MAX_INLINE_BYTES: Final = 64 * 1024
#: In characters. It keeps every frame without its body small.
MAX_CHANNEL: Final = 255

_LENGTH: Final = struct.Struct("<I")


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message: its ``body``, or the size of the file that contains the body."""

    channel: str
    body: bytes | int


class BadFrame(ValueError):
    """Bytes that no sender of this version writes."""


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(Message).decode


def check(channel: object, body: object = b"") -> None:
    """Raise TypeError, or ValueError if the channel's name is too long."""
    if not isinstance(channel, str) or not isinstance(body, bytes | bytearray):
        kinds = f"{type(channel).__name__} and {type(body).__name__}"
        raise TypeError(f"a channel is a str and a message is bytes, not {kinds}")
    if len(channel) > MAX_CHANNEL:
        raise ValueError(f"a channel of {len(channel)} characters: {MAX_CHANNEL} are allowed")


def frame(channel: str, body: bytes | int) -> bytearray:
    """Return the frame of one message."""
    data = bytearray(_LENGTH.size)
    _encode_into(Message(channel, body), data, _LENGTH.size)
    _LENGTH.pack_into(data, 0, len(data) - _LENGTH.size)
    return data


class Splitter:
    """Splits the bytes of one link into messages, however they arrive."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the link. To be called when ``next`` has returned None."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> Message | None:
        """Return the next complete message, or None. Raise BadFrame."""
        data, begin = self._data, self._at + _LENGTH.size
        if begin > len(data):
            return None
        end = begin + _LENGTH.unpack_from(data, self._at)[0]
        if end > len(data):
            # No sender writes more than that, so the rest is not waited for.
            if end - begin > 2 * MAX_INLINE_BYTES:
                raise BadFrame(f"a frame of {end - begin} bytes")
            return None
        self._at = end
        try:
            return _decode(memoryview(data)[begin:end])
        # msgspec does not wrap the error of a channel that is not UTF-8.
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadFrame(f"a frame that cannot be decoded: {error}") from None
