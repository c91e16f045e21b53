"""What is kept for a worker that does not read, waited for, and lost."""

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gunicorn_cluster_ext.bus.send_queue import (
    CHUNK_BYTES,
    LIMIT_BYTES,
    MAX_UNREAD_FILES,
    QueuedMessage,
    SendQueue,
    SendResult,
)

FILE = object()
NOW, LATER = 10.0, 11.0


def small(body: bytes = b"x", size: int = 100) -> QueuedMessage:
    return QueuedMessage(bytearray(body), None, size)


def large(size: int) -> QueuedMessage:
    return QueuedMessage(bytearray(b"head"), FILE, size)


def fill(queue: SendQueue, message: QueuedMessage) -> int:
    """Offer as long as it is kept; how often it was."""
    count = 0
    while queue.offer(message, NOW, LATER) is SendResult.ACCEPTED:
        count += 1
    return count


def write(queue: SendQueue) -> list[tuple[bytes, Any]]:
    """Write as much as may be written."""
    written = []
    while queue.waiting and (chunk := queue.next_chunk()):
        buffers, file = chunk
        written.append((b"".join(buffers), file))
        queue.mark_written(len(written[-1][0]))
    return written


def test_what_waits_goes_in_order_and_together() -> None:
    queue = SendQueue()
    for body in (b"one", b"two", b"three"):
        queue.append(small(body))
    assert write(queue) == [(b"onetwothree", None)]
    assert not queue.is_pending


def test_a_message_that_went_in_part_goes_on_where_it_stopped() -> None:
    queue = SendQueue()
    queue.append(small(b"abcdef"), written=2)
    queue.append(small(b"ghi"))
    buffers, _ = queue.next_chunk() or ((), None)
    assert b"".join(buffers) == b"cdefghi"
    queue.mark_written(5)
    assert write(queue) == [(b"hi", None)]


def test_not_too_much_is_written_at_once() -> None:
    queue = SendQueue()
    for _ in range(100):
        queue.append(small(bytes(CHUNK_BYTES // 10)))
    buffers, _ = queue.next_chunk() or ((), None)
    assert CHUNK_BYTES <= sum(map(len, buffers)) <= CHUNK_BYTES + CHUNK_BYTES // 10
    assert b"".join(each for each, _ in write(queue)) == bytes(CHUNK_BYTES // 10 * 100)


def test_a_large_message_goes_by_itself_between_those_before_and_after() -> None:
    queue = SendQueue()
    for message in (small(b"a"), large(1), small(b"b"), small(b"c")):
        queue.append(message)
    assert write(queue) == [(b"a", None), (b"head", FILE), (b"bc", None)]
    assert queue.has_unread


def test_large_ones_are_under_way_a_few_at_a_time() -> None:
    queue = SendQueue()
    for _ in range(MAX_UNREAD_FILES + 2):
        queue.append(large(1))
    assert len(write(queue)) == MAX_UNREAD_FILES
    assert write(queue) == []
    queue.mark_read(1)
    assert len(write(queue)) == 1


def test_or_only_one_that_is_very_large() -> None:
    queue = SendQueue()
    queue.append(large(3 * LIMIT_BYTES))
    queue.append(large(3 * LIMIT_BYTES))
    assert len(write(queue)) == 1
    assert queue.offer(small(), NOW, LATER) is SendResult.WAIT
    queue.mark_read(1)
    assert len(write(queue)) == 1


def test_what_is_kept_has_a_bound() -> None:
    queue = SendQueue()
    assert fill(queue, small(size=LIMIT_BYTES // 4)) == 4
    assert len(queue.waiting) == 4


def test_what_was_not_read_counts_as_kept() -> None:
    queue = SendQueue()
    queue.append(large(LIMIT_BYTES))
    write(queue)
    assert queue.offer(small(), NOW, LATER) is SendResult.WAIT
    queue.mark_read(1)
    assert queue.offer(small(), NOW, LATER) is SendResult.ACCEPTED


def test_one_message_is_kept_whatever_its_size() -> None:
    assert fill(SendQueue(), large(10 * LIMIT_BYTES)) == 1


def test_the_publisher_waits_until_the_time_is_over() -> None:
    queue = SendQueue()
    fill(queue, small(size=LIMIT_BYTES))
    assert queue.offer(small(), 10.9, 11.0) is SendResult.WAIT
    assert queue.offer(small(), 11.0, 11.0) is SendResult.LOST
    assert queue.lost == 1


def test_nobody_waits_again_until_it_reads() -> None:
    queue = SendQueue()
    fill(queue, small(size=LIMIT_BYTES))
    queue.offer(small(), LATER, LATER)
    assert [queue.offer(small(), 20, 21) for _ in range(3)] == [SendResult.LOST] * 3
    write(queue)
    assert queue.resume() == 4
    fill(queue, small(size=LIMIT_BYTES))
    assert queue.offer(small(), 20, 21) is SendResult.WAIT


def test_with_no_time_at_all_nobody_waits() -> None:
    queue = SendQueue()
    fill(queue, small(size=LIMIT_BYTES))
    assert queue.offer(small(), NOW, NOW) is SendResult.LOST


class Queue(RuleBasedStateMachine):
    """All that is kept is written once and in order, and what is kept stays within its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = SendQueue()
        self.expected: deque[bytes] = deque()
        self.written = b""
        self.number = 0
        self.unread = 0

    @rule(size=st.sampled_from([1, 300, 70_000, LIMIT_BYTES // 3]), is_large=st.booleans())
    def offer(self, size: int, is_large: bool) -> None:
        self.number += 1
        frame = b"%d;" % self.number
        message = QueuedMessage(bytearray(frame), FILE if is_large else None, size)
        if self.queue.offer(message, NOW, LATER) is SendResult.ACCEPTED:
            self.expected.append(frame)

    @precondition(lambda self: self.queue.waiting and self.queue.next_chunk())
    @rule(part=st.floats(0.01, 1))
    def write(self, part: float) -> None:
        chunk = self.queue.next_chunk()
        assert chunk is not None
        buffers, file = chunk
        data = b"".join(buffers)
        count = len(data) if file else max(1, int(part * len(data)))
        self.unread += bool(file)
        self.queue.mark_written(count)
        self.written += data[:count]

    @precondition(lambda self: self.unread)
    @rule()
    def read(self) -> None:
        self.unread -= 1
        self.queue.mark_read(1)

    @invariant()
    def holds(self) -> None:
        assert b"".join(self.expected).startswith(self.written)
        assert self.unread <= MAX_UNREAD_FILES
        assert self.queue.has_unread == bool(self.unread)
        if not self.queue.waiting:
            assert self.written == b"".join(self.expected)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("count", [1, 2])
def test_answers_nobody_waits_for_do_no_harm(count: int) -> None:
    queue = SendQueue()
    queue.append(large(5))
    write(queue)
    queue.mark_read(count)
    assert not queue.is_pending
