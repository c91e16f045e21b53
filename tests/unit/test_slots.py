from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from gunicorn_cluster_ext.board import SEATS_PER_SLOT
from gunicorn_cluster_ext.slots import Place, SlotTable


def table_of(capacity: int, *processes: int) -> SlotTable:
    table = SlotTable(capacity)
    for process in processes:
        table.seat(process, below=capacity)
    return table


def test_the_first_processes_get_the_first_slots() -> None:
    table = SlotTable(3)
    assert table.seat(11, table.capacity) == Place(slot=0, seat=0, generation=1)
    assert table.seat(12, table.capacity) == Place(slot=1, seat=2, generation=1)
    assert list(table.holders()) == [11, 12]
    assert (table.capacity, repr(table)) == (3, "<SlotTable [11, 12]>")


def test_the_replacement_of_a_dead_process_takes_its_slot_and_seat() -> None:
    table = table_of(3, 11, 12, 13)
    assert table.leave(12) == Place(1, 2, 1)
    assert table.place(12) is None
    assert table.seat(14, table.capacity) == Place(1, 2, 2)


def test_a_successor_takes_the_slot_and_the_other_seat() -> None:
    table = table_of(3, 11, 12)
    table.retire(11)
    assert not table.is_holder(11)
    assert table.seat(13, table.capacity) == Place(0, 1, 2)
    assert list(table.holders()) == [13, 12]
    assert table.place(11) == Place(0, 0, 1), "it drains in its seat"


def test_the_replacement_of_a_dead_successor_takes_the_successors_seat() -> None:
    table = table_of(1, 11)
    table.retire(11)
    table.seat(12, table.capacity)
    table.leave(11)
    table.leave(12)
    assert table.seat(13, table.capacity) == Place(0, 1, 3)


def test_a_slot_with_two_draining_processes_has_no_room() -> None:
    table = table_of(2, 11)
    table.retire(11)
    table.seat(12, table.capacity)
    table.retire(12)
    assert table.seat(13, table.capacity) == Place(1, 2, 1)
    table.leave(11)
    assert table.seat(14, table.capacity) == Place(0, 0, 3)


def test_a_process_that_drained_frees_its_seat_and_nothing_else() -> None:
    table = table_of(1, 11)
    table.retire(11)
    table.seat(12, table.capacity)
    table.leave(11)
    assert table.is_holder(12)
    table.retire(12)
    assert table.seat(13, table.capacity) == Place(0, 0, 3)


def test_all_can_be_succeeded_at_once() -> None:
    table = table_of(3, 11, 12)
    table.retire_all()
    assert list(table.holders()) == []
    assert [table.seat(process, table.capacity) for process in (13, 14)] == [
        Place(0, 1, 2),
        Place(1, 3, 2),
    ]


def test_there_may_be_no_slot_left() -> None:
    table = table_of(2, 11, 12)
    with pytest.raises(LookupError, match="no slot below 2 is free"):
        table.seat(13, table.capacity)


def test_slots_beyond_the_wanted_stay_empty() -> None:
    table = table_of(4, 11, 12)
    assert table.free(below=2) is None
    assert table.free(below=3) == 2
    with pytest.raises(LookupError, match="no slot below 2 is free"):
        table.seat(13, below=2)
    table.leave(11)
    assert table.seat(14, below=2) == Place(0, 0, 2)


def crowded() -> SlotTable:
    """In slot 0, process 12 holds and 11 drains; in slot 1, 13 holds."""
    table = table_of(2, 11)
    table.retire(11)
    table.seat(12, below=2)
    table.seat(13, below=2)
    return table


def test_who_stands_in_the_way_of_a_successor() -> None:
    table = crowded()
    assert table.crowding() == [11]
    table.retire(12)
    assert table.crowding() == [11, 12]
    table.leave(11)
    assert table.crowding() == []


def test_a_process_is_not_retired_while_no_successor_has_a_seat() -> None:
    table = crowded()
    table.retire_all()
    assert list(table.holders()) == [12]


def test_a_process_is_succeeded_as_soon_as_there_is_a_seat() -> None:
    """Of two reloads in short order, the second must not be lost: it may bring new code."""
    table = crowded()
    table.retire_all()
    assert table.seat(14, below=2).slot == 1
    table.leave(11)
    assert not table.is_holder(12)
    assert table.seat(15, below=2) == Place(0, 0, 3)


def test_strangers_are_of_no_concern() -> None:
    table = table_of(1, 11)
    table.retire(99)
    assert table.leave(99) is None
    assert not table.is_holder(99)
    assert list(table.holders()) == [11]


class AnyHistory(RuleBasedStateMachine):
    """Processes are forked, told to finish, and end, in any order."""

    processes: Bundle[int] = Bundle("processes")

    @initialize(capacity=st.integers(1, 4))
    def start(self, capacity: int) -> None:
        self.table = SlotTable(capacity)
        self.below = capacity
        self.forked = 0
        self.places: dict[int, Place] = {}
        self.generations = [0] * capacity

    def free_slots(self) -> Iterator[int]:
        held = {self.places[process].slot for process in self.table.holders()}
        for slot in range(self.below):
            there = sum(place.slot == slot for place in self.places.values())
            if slot not in held and there < SEATS_PER_SLOT:
                yield slot

    def check_seated(self, process: int, slot: int) -> Place:
        place = self.table.seat(process, self.below)
        assert place.slot == slot
        assert place.seat // SEATS_PER_SLOT == slot
        assert place.seat not in {other.seat for other in self.places.values()}
        self.generations[slot] += 1
        assert place.generation == self.generations[slot]
        assert self.table.is_holder(process)
        self.places[process] = place
        return place

    @rule(target=processes)
    def fork(self) -> object:
        self.forked += 1
        slot = next(self.free_slots(), None)
        if slot is None:
            with pytest.raises(LookupError):
                self.table.seat(self.forked, self.below)
            return multiple()
        self.check_seated(self.forked, slot)
        return self.forked

    @rule(below=st.integers(1, 4))
    def want(self, below: int) -> None:
        self.below = min(below, self.table.capacity)

    @rule(process=processes)
    def retire(self, process: int) -> None:
        self.table.retire(process)
        assert not self.table.is_holder(process)
        assert self.table.place(process) == self.places[process]

    @rule()
    def retire_all(self) -> None:
        self.table.retire_all()

    @rule(process=consumes(processes))
    def end(self, process: int) -> None:
        assert self.table.leave(process) == self.places.pop(process)
        assert self.table.place(process) is None
        assert self.table.leave(process) is None

    @rule(target=processes, process=consumes(processes))
    def crash(self, process: int) -> object:
        """And is replaced at once."""
        held = self.table.is_holder(process)
        before = self.places[process]
        self.end(process)
        replacement = self.fork()
        after = self.places.get(self.forked)
        if held and after is not None and after.slot == before.slot:
            assert after.seat == before.seat, "what is queued there is read"
        return replacement

    @invariant()
    def nobody_shares(self) -> None:
        assert self.table.free(self.below) == next(self.free_slots(), None)
        holders = list(self.table.holders())
        slots = [self.places[process].slot for process in holders]
        assert slots == sorted(set(slots))
        assert [process for process in self.places if self.table.is_holder(process)] == sorted(
            holders
        )
        seats = [place.seat for place in self.places.values()]
        assert len(seats) == len(set(seats))


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyHistory = AnyHistory.TestCase
