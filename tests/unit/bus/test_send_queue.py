"""What is kept for a worker that does not read, waited for, and lost."""

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gunicorn_cluster_ext.bus.send_queue import CHUNK, ROOM, UNDER_WAY, Backlog, Parcel, Verdict

FILE = object()
NOW, LATER = 10.0, 11.0


def small(body: bytes = b"x", size: int = 100) -> Parcel:
    return Parcel(bytearray(body), None, size)


def large(size: int) -> Parcel:
    return Parcel(bytearray(b"head"), FILE, size)


def fill(backlog: Backlog, parcel: Parcel) -> int:
    """Offer as long as it is kept; how often it was."""
    count = 0
    while backlog.offer(parcel, NOW, LATER) is Verdict.KEPT:
        count += 1
    return count


def write(backlog: Backlog) -> list[tuple[bytes, Any]]:
    """Write as much as may be written."""
    written = []
    while backlog.waiting and (chunk := backlog.chunk()):
        buffers, file = chunk
        written.append((b"".join(buffers), file))
        backlog.written(len(written[-1][0]))
    return written


def test_what_waits_goes_in_order_and_together() -> None:
    backlog = Backlog()
    for body in (b"one", b"two", b"three"):
        backlog.keep(small(body))
    assert write(backlog) == [(b"onetwothree", None)]
    assert not backlog.is_pending


def test_a_message_that_went_in_part_goes_on_where_it_stopped() -> None:
    backlog = Backlog()
    backlog.keep(small(b"abcdef"), gone=2)
    backlog.keep(small(b"ghi"))
    buffers, _ = backlog.chunk() or ((), None)
    assert b"".join(buffers) == b"cdefghi"
    backlog.written(5)
    assert write(backlog) == [(b"hi", None)]


def test_not_too_much_is_written_at_once() -> None:
    backlog = Backlog()
    for _ in range(100):
        backlog.keep(small(bytes(CHUNK // 10)))
    buffers, _ = backlog.chunk() or ((), None)
    assert CHUNK <= sum(map(len, buffers)) <= CHUNK + CHUNK // 10
    assert b"".join(each for each, _ in write(backlog)) == bytes(CHUNK // 10 * 100)


def test_a_large_message_goes_by_itself_between_those_before_and_after() -> None:
    backlog = Backlog()
    for parcel in (small(b"a"), large(1), small(b"b"), small(b"c")):
        backlog.keep(parcel)
    assert write(backlog) == [(b"a", None), (b"head", FILE), (b"bc", None)]
    assert backlog.is_unread


def test_large_ones_are_under_way_a_few_at_a_time() -> None:
    backlog = Backlog()
    for _ in range(UNDER_WAY + 2):
        backlog.keep(large(1))
    assert len(write(backlog)) == UNDER_WAY
    assert write(backlog) == []
    backlog.read(1)
    assert len(write(backlog)) == 1


def test_or_only_one_that_is_very_large() -> None:
    backlog = Backlog()
    backlog.keep(large(3 * ROOM))
    backlog.keep(large(3 * ROOM))
    assert len(write(backlog)) == 1
    assert backlog.offer(small(), NOW, LATER) is Verdict.WAIT
    backlog.read(1)
    assert len(write(backlog)) == 1


def test_what_is_kept_has_a_bound() -> None:
    backlog = Backlog()
    assert fill(backlog, small(size=ROOM // 4)) == 4
    assert len(backlog.waiting) == 4


def test_what_was_not_read_counts_as_kept() -> None:
    backlog = Backlog()
    backlog.keep(large(ROOM))
    write(backlog)
    assert backlog.offer(small(), NOW, LATER) is Verdict.WAIT
    backlog.read(1)
    assert backlog.offer(small(), NOW, LATER) is Verdict.KEPT


def test_one_message_is_kept_whatever_its_size() -> None:
    assert fill(Backlog(), large(10 * ROOM)) == 1


def test_the_publisher_waits_until_the_time_is_over() -> None:
    backlog = Backlog()
    fill(backlog, small(size=ROOM))
    assert backlog.offer(small(), 10.9, 11.0) is Verdict.WAIT
    assert backlog.offer(small(), 11.0, 11.0) is Verdict.LOST
    assert backlog.lost == 1


def test_nobody_waits_again_until_it_reads() -> None:
    backlog = Backlog()
    fill(backlog, small(size=ROOM))
    backlog.offer(small(), LATER, LATER)
    assert [backlog.offer(small(), 20, 21) for _ in range(3)] == [Verdict.LOST] * 3
    write(backlog)
    assert backlog.resume() == 4
    fill(backlog, small(size=ROOM))
    assert backlog.offer(small(), 20, 21) is Verdict.WAIT


def test_with_no_time_at_all_nobody_waits() -> None:
    backlog = Backlog()
    fill(backlog, small(size=ROOM))
    assert backlog.offer(small(), NOW, NOW) is Verdict.LOST


class Lane(RuleBasedStateMachine):
    """All that is kept is written once and in order, and what is kept stays within its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.expected: deque[bytes] = deque()
        self.written = b""
        self.number = 0
        self.unread = 0

    @rule(size=st.sampled_from([1, 300, 70_000, ROOM // 3]), is_large=st.booleans())
    def offer(self, size: int, is_large: bool) -> None:
        self.number += 1
        frame = b"%d;" % self.number
        parcel = Parcel(bytearray(frame), FILE if is_large else None, size)
        if self.backlog.offer(parcel, NOW, LATER) is Verdict.KEPT:
            self.expected.append(frame)

    @precondition(lambda self: self.backlog.waiting and self.backlog.chunk())
    @rule(part=st.floats(0.01, 1))
    def write(self, part: float) -> None:
        chunk = self.backlog.chunk()
        assert chunk is not None
        buffers, file = chunk
        data = b"".join(buffers)
        count = len(data) if file else max(1, int(part * len(data)))
        self.unread += bool(file)
        self.backlog.written(count)
        self.written += data[:count]

    @precondition(lambda self: self.unread)
    @rule()
    def read(self) -> None:
        self.unread -= 1
        self.backlog.read(1)

    @invariant()
    def holds(self) -> None:
        assert b"".join(self.expected).startswith(self.written)
        assert self.unread <= UNDER_WAY
        assert self.backlog.is_unread == bool(self.unread)
        if not self.backlog.waiting:
            assert self.written == b"".join(self.expected)


TestLane = Lane.TestCase
TestLane.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("count", [1, 2])
def test_answers_nobody_waits_for_do_no_harm(count: int) -> None:
    backlog = Backlog()
    backlog.keep(large(5))
    write(backlog)
    backlog.read(count)
    assert not backlog.is_pending
