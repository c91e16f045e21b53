"""Messages of the bus as bytes, and back, however they are cut."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.bus import framing
from gunicorn_cluster_ext.bus.framing import BadFrame, Message, Splitter, frame

channels = st.text(max_size=20)
bodies = st.binary(max_size=200) | st.integers(0, 1 << 40)
messages = st.lists(st.builds(Message, channels, bodies), max_size=20)


def feed(splitter: Splitter, data: bytes) -> list[Message]:
    splitter.feed(data)
    return list(iter(splitter.next, None))


@given(messages, st.lists(st.integers(1, 50)))
def test_every_message_comes_out_once_and_in_order(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(frame(message.channel, message.body) for message in sent)
    splitter, came = Splitter(), []
    for size in cuts:
        came += feed(splitter, data[:size])
        data = data[size:]
    came += feed(splitter, data)
    assert came == sent


def test_the_largest_message_fits() -> None:
    body = bytes(framing.MAX_INLINE_BYTES)
    channel = "\N{GRINNING FACE}" * framing.MAX_CHANNEL
    assert feed(Splitter(), bytes(frame(channel, body))) == [Message(channel, body)]


def test_a_channel_has_a_longest_name() -> None:
    framing.check("x" * framing.MAX_CHANNEL)
    with pytest.raises(ValueError, match="256 characters: 255 are allowed"):
        framing.check("x" * 256)


@pytest.mark.parametrize(("channel", "body"), [("x", "text"), (b"x", b""), ("x", None), (1, b"")])
def test_what_is_no_message_is_not_sent(channel: Any, body: Any) -> None:
    with pytest.raises(TypeError, match="a channel is a str and a message is bytes, not "):
        framing.check(channel, body)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 30),
        struct.pack("<I", 3) + b"abc",
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 4) + b"\x92\xa1\xff\x01",  # a channel that is not UTF-8
        struct.pack("<I", 0),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        feed(Splitter(), data)
