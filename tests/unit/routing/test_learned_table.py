import mmap
import time
from functools import partial
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gunicorn_cluster_ext.routing.learned_table import (
    MAX_SLOT,
    WAYS,
    LearnedEntry,
    LearnedTable,
    words_for,
)
from gunicorn_cluster_ext.routing.tags import ProcessTag
from tests.harness.forks import spawn, status_of

NOW = 1_000
ALICE, BOB = ProcessTag(0, 1), ProcessTag(MAX_SLOT, (1 << 24) - 1)

keys = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**64 - 1)
processes = st.builds(ProcessTag, st.integers(0, MAX_SLOT), st.integers(0, 2**24 - 1))
times = st.integers(1, 2**30 - 1)


def new_words(buckets: int) -> memoryview:
    return memoryview(bytearray(words_for(buckets * WAYS // 2) * 8)).cast("Q")


def new_table(buckets: int = 1) -> LearnedTable:
    return LearnedTable(new_words(buckets))


# --- one value --------------------------------------------------------------------------------


@given(keys, processes, times, times)
def test_what_is_put_is_found_until_it_expires(
    key: int, process: ProcessTag, one: int, other: int
) -> None:
    table, now, expires = new_table(), min(one, other), max(one, other)
    assert not table.put(key, process, expires, now)
    found = table.find(key, now)
    assert found == (LearnedEntry(process, expires) if expires > now else None)
    assert table.find(key, expires) is None
    assert table.holds(process, now) is (expires > now)
    assert not table.holds(process, expires)


@given(keys)
def test_an_empty_table_knows_nothing(key: int) -> None:
    table = new_table()
    table.renew(key, NOW + 5)
    assert table.find(key, 0) is None


@given(st.lists(words, min_size=2 * WAYS, max_size=2 * WAYS), keys)
def test_garbage_in_memory_is_no_entry(garbage: list[int], key: int) -> None:
    pairs = zip(garbage[::2], garbage[1::2], strict=True)
    assume(all(one ^ other >> 30 << 30 != key for one, other in pairs))  # a chance of 2**-61
    memory = new_words(1)
    for index, word in enumerate(garbage):
        memory[index] = word
    table = LearnedTable(memory)
    assert table.find(key, NOW) is None
    table.put(key, ALICE, NOW + 5, NOW)
    assert table.find(key, NOW) == (ALICE, NOW + 5)


@given(keys, processes, processes)
def test_a_half_written_entry_is_no_entry(key: int, mine: ProcessTag, other: ProcessTag) -> None:
    old, new = new_words(1), new_words(1)
    LearnedTable(old).put(key, mine, NOW + 5, NOW)
    LearnedTable(new).put(key, other, NOW + 5, NOW)
    old[0] = new[0]
    assert (LearnedTable(old).find(key, NOW) is None) is (mine != other)


def test_the_last_process_counts() -> None:
    table = new_table()
    table.put(7, ALICE, NOW + 5, NOW)
    table.put(7, BOB, NOW + 6, NOW)
    assert table.find(7, NOW) == (BOB, NOW + 6)
    assert not table.holds(ALICE, NOW)


def test_an_entry_is_renewed_by_one_word() -> None:
    """No reader misses the entry while it is renewed."""
    memory = new_words(1)
    table = LearnedTable(memory)
    table.put(7, BOB, NOW + 5, NOW)
    before = memory.tolist()
    table.renew(7, NOW + 9)
    assert table.find(7, NOW + 8) == (BOB, NOW + 9)
    assert sum(one != other for one, other in zip(before, memory, strict=True)) == 1


# --- many values ------------------------------------------------------------------------------


def test_a_full_bucket_evicts_the_entry_that_expires_first() -> None:
    table = new_table()
    for key in range(WAYS):
        assert not table.put(key, ALICE, NOW + 100 + key, NOW)
    table.renew(0, NOW + 200)
    assert table.put(WAYS, BOB, NOW + 300, NOW)
    assert table.find(1, NOW) is None
    assert {key for key in range(WAYS + 1) if table.find(key, NOW)} == {0, *range(2, WAYS + 1)}


def test_expired_entries_are_evicted_first() -> None:
    table = new_table()
    for key in range(WAYS):
        table.put(key, ALICE, NOW + (1 if key == 3 else 100), NOW)
    assert not table.put(WAYS, BOB, NOW + 5, NOW + 2)
    assert all(table.find(key, NOW + 2) for key in range(WAYS + 1) if key != 3)


def test_processes_prefer_different_entries() -> None:
    """Two that write at the same moment do not take the same entry."""
    taken = set()
    for seat in range(WAYS):
        memory = new_words(1)
        LearnedTable(memory, preferred_way=seat).put(7, ALICE, NOW + 5, NOW)
        taken.add(next(index for index, word in enumerate(memory) if word) // 2)
    assert taken == set(range(WAYS))


def test_a_table_has_at_least_what_was_asked_for() -> None:
    assert words_for(1) == words_for(8) == 32
    assert words_for(9) == 64


def test_a_table_has_room_for_its_values() -> None:
    table = LearnedTable(memoryview(bytearray(words_for(4096) * 8)).cast("Q"))
    lost = sum(table.put(spread(key), ALICE, NOW + 5, NOW) for key in range(4096))
    assert lost <= 20
    assert sum(table.find(spread(key), NOW) is None for key in range(4096)) == lost


@pytest.mark.parametrize("way", [0, 5, 8191, 8192, 20_000, 24_575])
def test_a_process_is_found_wherever_it_stands(way: int) -> None:
    memory = new_words(1536)
    LearnedTable(memory[:32]).put(7, ALICE, NOW + 5, NOW)
    memory[2 * way], memory[2 * way + 1] = memory[0], memory[1]
    memory[0], memory[1] = (0, 0) if way else (memory[0], memory[1])
    assert LearnedTable(memory).holds(ALICE, NOW)
    assert not LearnedTable(memory).holds(BOB, NOW)


def spread(key: int) -> int:
    """As the hash of a value does."""
    return int.from_bytes(blake2b(b"%d" % key, digest_size=8).digest(), "little")


class Model(RuleBasedStateMachine):
    """Compared with a dictionary, the table finds nothing wrong and reports every loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table = new_table(buckets=3)
        self.truth: dict[int, LearnedEntry] = {}
        self.now = NOW
        self.lost = 0

    few = st.integers(0, 70)

    @rule(key=few, process=processes, ttl=st.integers(1, 50))
    def put(self, key: int, process: ProcessTag, ttl: int) -> None:
        self.lost += self.table.put(key, process, self.now + ttl, self.now)
        self.truth[key] = LearnedEntry(process, self.now + ttl)

    @rule(key=few, ttl=st.integers(1, 50))
    def renew(self, key: int, ttl: int) -> None:
        if self.table.find(key, self.now):
            self.table.renew(key, self.now + ttl)
            self.truth[key] = LearnedEntry(self.truth[key].process, self.now + ttl)

    @rule(seconds=st.integers(0, 60))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def agrees(self) -> None:
        live = {key: entry for key, entry in self.truth.items() if entry.expires > self.now}
        found = {key: self.table.find(key, self.now) for key in live}
        assert all(entry in (None, live[key]) for key, entry in found.items())
        assert list(found.values()).count(None) <= self.lost
        for key in range(71):
            assert key in live or self.table.find(key, self.now) is None
        for process in {entry.process for entry in live.values()}:
            known = any(entry and entry.process == process for entry in found.values())
            assert self.table.holds(process, self.now) is known


TestModel: Any = Model.TestCase


def test_a_look_takes_microseconds() -> None:
    table = new_table(buckets=4096)
    for key in range(10_000):
        table.put(spread(key), ALICE, NOW + 5, NOW)
    begun = time.process_time()
    for key in range(10_000):
        table.find(spread(key), NOW)
    assert (time.process_time() - begun) / 10_000 < 50e-6  # 2 us were measured


# --- several processes ------------------------------------------------------------------------

WRITERS = 4


def test_concurrent_writers_lose_nothing_and_mix_up_nothing() -> None:
    """Each puts keys of its own, renews those of all, and looks at them, in buckets half full."""
    buckets, mine = 4, 8
    memory = memoryview(mmap.mmap(-1, words_for(buckets * WAYS // 2) * 8)).cast("Q")

    def owner(key: int) -> ProcessTag:
        return ProcessTag(key % WRITERS, 7)

    def write(slot: int) -> None:
        table = LearnedTable(memory, preferred_way=2 * slot)
        own = range(slot, WRITERS * mine, WRITERS)
        for turn in range(400):
            for key in own:
                table.put(key, owner(key), NOW + 5 + turn, NOW)
            for key in range(WRITERS * mine):
                found = table.find(key, NOW)
                assert found is None or found.process == owner(key)
                assert found is not None or key not in own
                table.renew(key, NOW + 5 + (key * turn) % 50)

    pids = [spawn(partial(write, slot)) for slot in range(WRITERS)]
    assert [status_of(pid) for pid in pids] == [0] * WRITERS
    table = LearnedTable(memory)
    assert all(table.find(key, NOW) for key in range(WRITERS * mine))
