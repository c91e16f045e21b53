import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.tags import (
    ProcessTag,
    parse_sid,
    parse_slot_tag,
    slot_tag,
    tag_sid,
)

slots = st.integers(0, 9999)
generations = st.integers(0, 9_999_999_999)
sids = st.text(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64
)


@given(slots)
def test_a_slot_tag_is_read_back(slot: int) -> None:
    assert parse_slot_tag(slot_tag(slot).encode()) == slot


@given(sids, slots, generations)
def test_a_process_tag_is_read_back(sid: str, slot: int, generation: int) -> None:
    assert parse_sid(tag_sid(sid, slot, generation).encode()) == ProcessTag(slot, generation)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" 1",
        b"1 ",
        b"1\n",
        b"01",
        b"00",
        b"-1",
        b"+1",
        b"1.0",
        b"1_0",
        b"0x1",
        b"1e1",
        b"10000",
        b"9" * 5000,
        b"a",
        b'"1"',
        "١".encode(),
        "1".encode("utf-16"),
        b"1\x00",
        b"1;2",
        b"1,2",
    ],
)
def test_anything_else_is_no_slot_tag(value: bytes) -> None:
    assert parse_slot_tag(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"abc",
        b"abc.1",
        b"abc.1.",
        b"abc..1",
        b".1.1",
        b"abc.1.2.3",
        b"a.bc.1.2",
        b"abc.01.2",
        b"abc.1.02",
        b"abc.-1.2",
        b"abc.10000.1",
        b"abc.1.10000000000",
        b"abc.1.2\n",
        b" abc.1.2",
        b"abc%2E1%2E2",
        b"ab/c.1.2",
        b"ab+c.1.2",
        b"ab\xe9.1.2",
        b"a" * 65 + b".1.2",
        b"abc." + b"1" * 5000 + b".1",
    ],
)
def test_anything_else_is_no_process_tag(value: bytes) -> None:
    assert parse_sid(value) is None


@given(st.binary(max_size=20))
def test_no_bytes_make_the_parsers_fail(value: bytes) -> None:
    slot = parse_slot_tag(value)
    assert slot is None or slot_tag(slot).encode() == value
    tag = parse_sid(value)
    assert tag is None or tag.slot in range(10_000)
