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

from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, Place, State
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable


def add(table: SlotTable, key: int, slot: int = 0) -> Process:
    return table.add(key, slot, version=0, now=10.0)


def serve(table: SlotTable, process: Process) -> Process:
    table.note_state(process, State.READY, 11.0)
    return process


def test_a_new_process_boots_and_has_the_slot() -> None:
    table = SlotTable(3)
    process = table.add(11, 2, version=5, now=10.0)
    assert process.place == Place(slot=2, seat=4, generation=1)
    assert (process.key, process.version, process.forked_at) == (11, 5, 10.0)
    assert (process.role, process.state, process.ready_at) == (Role.CURRENT, State.BOOTING, None)
    assert table.get(11) is table.current(2) is process
    assert table.get(12) is table.current(1) is table.next(2) is None
    assert (table.capacity, repr(table)) == (3, "<SlotTable [<CURRENT 2.1 booting>]>")


def test_a_second_process_is_next() -> None:
    table = SlotTable(1)
    old, new = add(table, 11), add(table, 12)
    assert (old.role, new.role) == (Role.CURRENT, Role.NEXT)
    assert new.place == Place(0, 1, 2)
    assert (table.current(0), table.next(0)) == (old, new)


@pytest.mark.parametrize("role", [Role.RETIRED, Role.PARKED])
def test_next_becomes_current_when_current_loses_its_role(role: Role) -> None:
    table = SlotTable(1)
    old, new = add(table, 11), add(table, 12)
    table.set_role(old, role)
    assert (old.role, new.role) == (role, Role.CURRENT)


def test_next_becomes_current_when_current_exits() -> None:
    table = SlotTable(1)
    old, new = add(table, 11), add(table, 12)
    assert table.remove(11) is old
    assert old.role is Role.RETIRED
    assert list(table) == [new]
    assert new.role is Role.CURRENT


def test_current_stays_when_next_exits() -> None:
    table = SlotTable(1)
    old, new = add(table, 11), add(table, 12)
    table.remove(12)
    assert table.current(0) is old
    assert add(table, 13).place == Place(0, new.place.seat, 3)


def test_a_resumed_process_takes_over_as_any_successor() -> None:
    table = SlotTable(1)
    old, new = add(table, 11), add(table, 12)
    table.set_role(old, Role.PARKED)
    table.set_role(old, Role.NEXT)
    assert (table.current(0), table.next(0)) == (new, old)
    table.set_role(new, Role.RETIRED)
    assert (table.current(0), table.next(0)) == (old, None)


def test_a_resumed_process_is_current_at_once_in_an_empty_slot() -> None:
    table = SlotTable(1)
    old = add(table, 11)
    table.set_role(old, Role.PARKED)
    table.set_role(old, Role.NEXT)
    assert old.role is Role.CURRENT


def test_the_replacement_of_a_dead_process_takes_its_seat() -> None:
    """So what is queued in its inbox is read."""
    table = SlotTable(3)
    for slot in range(3):
        add(table, slot, slot)
    table.remove(1)
    assert add(table, 4, 1).place == Place(1, 2, 2)


def test_the_replacement_of_a_dead_successor_takes_the_successors_seat() -> None:
    table = SlotTable(1)
    old, _ = add(table, 11), add(table, 12)
    table.set_role(old, Role.RETIRED)
    table.remove(12)
    table.remove(11)
    assert add(table, 13).place == Place(0, 1, 3)


def test_a_successor_that_never_took_over_leaves_no_trace() -> None:
    table = SlotTable(1)
    add(table, 11)
    add(table, 12)
    table.remove(12)
    table.remove(11)
    assert add(table, 13).place == Place(0, 0, 3)


@pytest.mark.parametrize("role", [Role.CURRENT, Role.RETIRED, Role.PARKED])
def test_a_slot_has_two_seats(role: Role) -> None:
    table = SlotTable(2)
    old, new = add(table, 11), add(table, 12)
    if role is not Role.CURRENT:
        table.set_role(old, role)
        table.set_role(new, role)
    assert not table.has_free_seat(0)
    assert table.has_free_seat(1)
    with pytest.raises(LookupError, match=r"no seat is free in slot 0: \["):
        add(table, 13)
    assert table.get(13) is None
    table.remove(11)
    assert table.has_free_seat(0)


def test_a_resumed_process_excludes_another_successor() -> None:
    """Two processes are never NEXT, even if a seat is free."""
    table = SlotTable(1)
    table.set_role(add(table, 11), Role.PARKED)
    add(table, 12)
    table.set_role(next(iter(table)), Role.NEXT)
    with pytest.raises(LookupError):
        add(table, 13)


def test_a_process_serves_from_ready_until_it_is_retired() -> None:
    table = SlotTable(1)
    process = add(table, 11)
    assert not process.serves
    table.note_state(process, State.READY, 12.0)
    assert process.serves
    process.retired_at = 13.0
    assert not process.serves, "it may publish READY until it has got the signal"


@pytest.mark.parametrize("state", [State.GONE, State.BOOTING, State.DRAINING, State.PARKED])
def test_only_a_ready_process_serves(state: State) -> None:
    table = SlotTable(1)
    process = serve(table, add(table, 11))
    table.note_state(process, state, 12.0)
    assert not process.serves


@pytest.mark.parametrize("role", list(Role))
def test_only_current_and_next_processes_serve(role: Role) -> None:
    table = SlotTable(1)
    old, _ = serve(table, add(table, 11)), add(table, 12)
    if role is Role.NEXT:
        table.set_role(old, Role.PARKED)
    table.set_role(old, role)
    assert old.serves is (role in (Role.CURRENT, Role.NEXT))


def test_the_first_ready_counts() -> None:
    table = SlotTable(1)
    process = add(table, 11)
    for now, state in enumerate([State.BOOTING, State.READY, State.PARKED, State.READY]):
        table.note_state(process, state, float(now))
    assert process.ready_at == 1.0


def test_serving_counts_slots_not_processes() -> None:
    table = SlotTable(3)
    for key, slot in [(1, 0), (2, 0), (3, 1)]:
        serve(table, add(table, key, slot))
    add(table, 4, 2)
    assert table.serving() == 2
    assert table.count(Role.CURRENT) == 3
    assert table.count(Role.CURRENT, Role.NEXT) == 4
    assert table.count(Role.PARKED) == 0


def test_an_unknown_process_is_ignored() -> None:
    assert SlotTable(1).remove(99) is None


class AnyHistory(RuleBasedStateMachine):
    """Processes are forked, change their roles, and end, in any order."""

    processes: Bundle[Process] = Bundle("processes")

    @initialize(capacity=st.integers(1, 3))
    def start(self, capacity: int) -> None:
        self.table = SlotTable(capacity)
        self.alive: list[Process] = []
        self.generations = [0] * capacity
        self.forked = 0

    def there(self, slot: int) -> list[Process]:
        return [each for each in self.alive if each.place.slot == slot]

    @rule(target=processes, slot=st.integers(0, 2))
    def fork(self, slot: int) -> object:
        slot %= self.table.capacity
        roles = {each.role for each in self.there(slot)}
        full = len(self.there(slot)) == SEATS_PER_SLOT
        assert self.table.has_free_seat(slot) is not full
        self.forked += 1
        if full or Role.NEXT in roles:
            with pytest.raises(LookupError):
                self.table.add(self.forked, slot, 0, 0.0)
            return multiple()
        return self.seated(slot, Role.NEXT if Role.CURRENT in roles else Role.CURRENT)

    def seated(self, slot: int, role: Role) -> Process:
        process = self.table.add(self.forked, slot, 0, 0.0)
        self.generations[slot] += 1
        assert process.role is role
        assert process.place[::2] == (slot, self.generations[slot])
        assert process.place.seat // SEATS_PER_SLOT == slot
        self.alive.append(process)
        return process

    @rule(process=processes, role=st.sampled_from([Role.PARKED, Role.RETIRED]))
    def dismiss(self, process: Process, role: Role) -> None:
        if process.role is not Role.RETIRED:
            self.table.set_role(process, role)

    @rule(process=processes)
    def resume(self, process: Process) -> None:
        if process.role is Role.PARKED and self.table.next(process.place.slot) is None:
            self.table.set_role(process, Role.NEXT)

    @rule(process=consumes(processes))
    def end(self, process: Process) -> None:
        assert self.table.remove(process.key) is process
        assert self.table.remove(process.key) is None
        self.alive.remove(process)

    @rule(target=processes, process=consumes(processes))
    def crash(self, process: Process) -> object:
        """End the process and replace it at once."""
        was, slot = process.role, process.place.slot
        self.end(process)
        if was is not Role.CURRENT or self.table.current(slot):
            return multiple()
        replacement = self.fork(slot)
        assert isinstance(replacement, Process)
        assert replacement.place.seat == process.place.seat, (
            "or what is queued there would not be read"
        )
        return replacement

    @invariant()
    def the_table_is_complete(self) -> None:
        assert {each.key for each in self.table} == {each.key for each in self.alive}
        for process in self.alive:
            assert self.table.get(process.key) is process
        slots = [each.place.slot for each in self.table]
        assert slots == sorted(slots)

    @invariant()
    def no_seat_is_shared(self) -> None:
        seats = [each.place.seat for each in self.alive]
        assert len(seats) == len(set(seats))
        for slot in range(self.table.capacity):
            roles = [each.role for each in self.there(slot)]
            assert roles.count(Role.CURRENT) <= 1
            assert roles.count(Role.NEXT) <= roles.count(Role.CURRENT)


AnyHistory.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestAnyHistory = AnyHistory.TestCase
