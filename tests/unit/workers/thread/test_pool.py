import select
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gunicorn_cluster_ext.workers.thread.pool import Pool

TIMEOUT = 10.0
Work = Callable[[int], bool]


@pytest.fixture
def start() -> Iterator[Callable[[int, Work], Pool[int]]]:
    pools: list[Pool[int]] = []

    def new(size: int, work: Work) -> Pool[int]:
        pools.append(Pool(size, work))
        return pools[-1]

    yield new
    for pool in pools:
        pool.close()
    for thread in threading.enumerate():
        if thread.name.startswith("request-"):
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def turn(pool: Pool[int], timeout: float = 0.1) -> list[tuple[int, bool]]:
    """Run one turn of a main loop, and return what threads gave back."""
    timeout = pool.max_sleep(timeout) if pool.may_sleep() else 0
    readable, _, _ = select.select([pool], [], [], timeout)
    pool.is_awake()
    if readable:
        pool.drain_wakeups()
    finished = list(pool.finished())
    pool.wake_more(time.monotonic())
    return finished


def collect(pool: Pool[int], count: int) -> list[tuple[int, bool]]:
    """Return what threads give back, once that is `count` items."""
    finished: list[tuple[int, bool]] = []
    deadline = time.monotonic() + TIMEOUT
    while len(finished) < count:
        assert time.monotonic() < deadline, f"only {finished} came back"
        finished += turn(pool)
    return finished


def test_work_is_done_in_a_thread_and_given_back(start: Callable[..., Pool[int]]) -> None:
    threads: list[threading.Thread] = []

    def work(item: int) -> bool:
        threads.append(threading.current_thread())
        return item % 2 == 0

    pool = start(3, work)
    for item in range(4):
        pool.submit(item)
    assert pool.busy == 4
    assert sorted(collect(pool, 4)) == [(0, True), (1, False), (2, True), (3, False)]
    assert pool.busy == 0
    assert threading.main_thread() not in threads
    assert not any(thread.daemon for thread in threads)


def test_no_thread_is_started_before_it_is_needed(start: Callable[..., Pool[int]]) -> None:
    before = threading.active_count()
    start(100, lambda item: True)
    assert threading.active_count() == before


def test_slow_work_gets_a_thread_each(start: Callable[..., Pool[int]]) -> None:
    meeting = threading.Barrier(5, timeout=TIMEOUT)
    pool = start(5, lambda item: bool(meeting.wait() >= 0))
    for item in range(5):
        pool.submit(item)
    assert sorted(collect(pool, 5)) == [(item, True) for item in range(5)]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """The event that work waits for. It is set at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def test_there_are_never_more_threads_than_allowed(
    start: Callable[..., Pool[int]], gate: threading.Event
) -> None:
    begun: list[int] = []

    def work(item: int) -> bool:
        begun.append(item)
        return gate.wait(TIMEOUT)

    pool = start(3, work)
    for item in range(6):
        pool.submit(item)
    deadline = time.monotonic() + TIMEOUT
    while len(begun) < 3 and time.monotonic() < deadline:
        turn(pool)
    assert turn(pool) == []
    assert sum(thread.name.startswith("request-") for thread in threading.enumerate()) == 3
    assert (len(begun), pool.busy, pool.waiting()) == (3, 6, 3)
    gate.set()
    assert sorted(collect(pool, 6)) == [(item, True) for item in range(6)]


def test_what_no_thread_has_taken_can_be_withdrawn(
    start: Callable[..., Pool[int]], gate: threading.Event
) -> None:
    begun = threading.Semaphore(0)

    def work(item: int) -> bool:
        begun.release()
        return gate.wait(TIMEOUT)

    pool = start(1, work)
    for item in range(4):
        pool.submit(item)
    assert begun.acquire(timeout=TIMEOUT)
    assert pool.waiting() == 3
    assert list(pool.withdraw()) == [1, 2, 3]
    assert (pool.busy, pool.waiting()) == (1, 0)
    gate.set()
    assert collect(pool, 1) == [(0, True)]


def test_a_main_loop_that_sleeps_is_woken(
    start: Callable[..., Pool[int]], gate: threading.Event
) -> None:
    pool = start(1, lambda item: gate.wait(TIMEOUT))
    pool.submit(1)
    assert pool.may_sleep()
    gate.set()
    assert select.select([pool], [], [], TIMEOUT)[0] == [pool]
    assert list(pool.finished()) == [(1, True)]


def test_a_main_loop_does_not_sleep_over_what_is_finished(
    start: Callable[..., Pool[int]],
) -> None:
    done = threading.Event()
    pool = start(1, lambda item: done.set() or True)
    pool.submit(1)
    assert done.wait(TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while pool.may_sleep() and time.monotonic() < deadline:
        pool.is_awake()
    assert not pool.may_sleep()
    assert list(pool.finished()) == [(1, True)]


def test_a_main_loop_can_be_woken_often(start: Callable[..., Pool[int]]) -> None:
    """Signal handlers do that, and must never block."""
    pool = start(1, lambda item: True)
    for _ in range(100_000):
        pool.wake()
    while select.select([pool], [], [], 0)[0]:
        pool.drain_wakeups()
    pool.drain_wakeups()


def test_no_wake_up_is_lost(start: Callable[..., Pool[int]]) -> None:
    """If one were, a turn would last its whole timeout."""
    pool = start(4, lambda item: True)
    began = time.monotonic()
    for item in range(300):
        pool.submit(item)
        while not turn(pool, timeout=TIMEOUT):
            pass
    assert time.monotonic() - began < TIMEOUT
