"""The embedded store among processes that are killed and stopped."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_async_store, open_store
from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from gunicorn_cluster_ext.stores.sync_async import BlockingStore
from tests.harness.process import Process
from tests.harness.store_conformance import in_threads
from tests.harness.store_program import SIZE
from tests.harness.waiting import wait_until

PROGRAM = "tests.harness.store_program"
ROOT = Path(__file__).parents[2]
Start = Callable[..., Process]


@pytest.fixture
def limit() -> float:
    """For tests in which nobody waits in vain."""
    return 5.0


brief = pytest.mark.parametrize("limit", [0.3])


@pytest.fixture
def settings(new_directory: Callable[[], Path], limit: float) -> Settings:
    return Settings(store_path=str(new_directory()), store_size=SIZE, store_timeout=limit)


@pytest.fixture
def store(settings: Settings) -> BlockingStore:
    return open_store(settings)


@pytest.fixture(autouse=True)
def closed(store: BlockingStore):  # type: ignore[no-untyped-def]
    yield
    store.close()


@pytest.fixture
def start(
    settings: Settings, new_directory: Callable[[], Path], keep: Callable[[Process], Process]
) -> Start:
    """Start a part of tests/harness/store_program.py on this store."""

    def start(what: str, *args: str) -> Process:
        command = [
            sys.executable,
            "-m",
            PROGRAM,
            what,
            str(settings.store_path),
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return keep(Process(what, [*command, *args], new_directory(), env))

    return start


def wait_ready(process: Process) -> None:
    process.wait_for(lambda: "ready" in process.log_text(), 20, "its being in the middle")


def crash(process: Process) -> None:
    process.signal(SIGKILL)
    process.wait_exit(10)


def timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def test_no_count_is_lost(store: BlockingStore, start: Start) -> None:
    """4 processes x 8 threads x 1,000."""
    counting = [start("count", "8", "1000") for _ in range(4)]
    for process in counting:
        assert process.wait_exit(60) == 0, process.report("failed")
    assert store.get(b"count") == b"32000"


def wait_writing(writer: Process, numbers: int = 20) -> None:
    writer.wait_for(lambda: len(writer.log_text().split()) > numbers, 20, "writing")


@brief
def test_writers_that_are_killed_lose_the_last_write_at_most(
    store: BlockingStore, start: Start
) -> None:
    for turn in range(8):
        writer = start("write", "w")
        wait_writing(writer)
        time.sleep(turn % 4 * 0.003)
        crash(writer)
        assert timed(partial(store.set, b"mine", b"1")) < 0.3
        said = int(writer.log_text().split()[-1])
        found, again = (int(each or 0) for each in store.get_many([b"w", b"w:again"]))
        assert found == again
        assert found in (said, said + 1)
        mapped = max(map(int, store.fields(b"w:map").values()))
        assert said <= mapped and mapped in (found - 1, found)


def test_one_that_is_killed_while_another_writes(store: BlockingStore, start: Start) -> None:
    steady = start("write", "steady")
    for _ in range(5):
        killed = start("write", "killed")
        wait_writing(killed)
        crash(killed)
        before = len(steady.log_text().split())
        steady.wait_for(partial(has_said, steady, before + 1), 1, "going on")


def has_said(writer: Process, numbers: int) -> bool:
    return len(writer.log_text().split()) >= numbers


@brief
def test_a_writer_that_is_killed_in_the_middle_blocks_nobody(
    store: BlockingStore, start: Start
) -> None:
    writer = start("hold")
    wait_ready(writer)
    crash(writer)
    assert timed(lambda: store.set(b"a", b"1")) < 0.3
    assert store.get_many([b"a", b"held"]) == [b"1", b"1"]


@brief
def test_a_writer_that_is_stopped_in_the_middle(store: BlockingStore, start: Start) -> None:
    """Reads go on; writes fail in time, then at once, until it is continued or killed."""
    store.set(b"a", b"1")
    writer = start("hold")
    wait_ready(writer)
    writer.signal(SIGSTOP)

    def refused() -> None:
        with pytest.raises(StoreAway, match=f"process {writer.pid}"):
            store.set(b"a", b"2")

    assert 0.25 < timed(refused) < 0.6
    assert store.get(b"a") == b"1"
    refused()
    refused()
    assert timed(refused) < 0.05, "the breaker is open"
    crash(writer)
    wait_until(lambda: is_written(store), 2, "a write")


def is_written(store: BlockingStore) -> bool:
    try:
        store.set(b"a", b"3")
    except StoreAway:
        return False
    return store.get(b"a") == b"3"


@brief
def test_an_event_loop_goes_on_while_others_write(
    store: BlockingStore, settings: Settings, start: Start
) -> None:
    store.get(b"a")  # so that it is open
    writer = start("hold")
    wait_ready(writer)
    asynchronous = open_async_store(settings)

    async def longest_pause() -> float:
        pauses, setting = [0.0], asyncio.create_task(asynchronous.set(b"a", b"1"))
        while not setting.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            pauses.append(time.monotonic() - before)
        with pytest.raises(StoreAway):
            await setting
        return max(pauses)

    assert asyncio.run(longest_pause()) < 0.1
    crash(writer)  # the store is closed before the programs are ended


def test_a_task_that_is_cancelled_leaves_no_lock(settings: Settings, start: Start) -> None:
    writer = start("hold")
    wait_ready(writer)
    store = open_async_store(settings)

    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(store.set(b"a", b"1"), 0.1)
        crash(writer)
        await store.set(b"a", b"2")
        assert await store.get(b"a") == b"2"

    asyncio.run(cancelled())


def test_readers_that_are_killed_do_not_fill_it(store: BlockingStore, start: Start) -> None:
    readers = [start("read") for _ in range(3)]
    for reader in readers:
        wait_ready(reader)
        crash(reader)
    for number in range(1_500):
        store.set(b"%d" % number, b"x" * 10_000)
    assert store.get(b"1499") is not None


def test_a_reader_that_is_stopped_is_named(store: BlockingStore, start: Start) -> None:
    """Nothing can be done about it, since somebody has just stopped it; the log names it."""
    reader = start("read")
    wait_ready(reader)
    with pytest.raises(StoreError, match="a process that was stopped while it read"):
        for number in range(3_000):
            store.set(b"%d" % number, b"x" * 10_000)
    crash(reader)
    store.set(b"a", b"1")
    assert store.get(b"a") == b"1"


def test_what_another_process_writes_is_seen_at_once(store: BlockingStore, start: Start) -> None:
    store.set(b"a", b"1")
    assert start("put", "a", "2").wait_exit(20) == 0
    assert store.get(b"a") == b"2"


def test_everybody_killed_nothing_lost(
    store: BlockingStore, settings: Settings, start: Start
) -> None:
    writer = start("write", "w")
    writer.wait_for(lambda: len(writer.log_text().split()) > 20, 20, "writing")
    crash(writer)
    said = int(writer.log_text().split()[-1])
    assert int(store.get(b"w") or 0) in (said, said + 1)


def test_a_fork_while_threads_use_it(store: BlockingStore) -> None:
    """The child opens its own, and the parent's goes on."""
    stop = threading.Event()
    store.set(b"a", b"1")

    def use(number: int) -> None:
        if number == 0:
            try:
                for _ in range(8):
                    assert forked(lambda: store.get(b"a") == b"1" and store.incr(b"forks") > 0)
            finally:
                stop.set()
        while not stop.is_set():
            assert store.get(b"a") == b"1"
            store.set(b"b%d" % number, b"1")

    in_threads(4, use)
    assert store.get(b"forks") == b"8"


def forked(check: Callable[[], object]) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
