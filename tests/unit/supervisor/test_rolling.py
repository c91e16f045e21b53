"""Plans, step by step. test_lifecycle.py has whole servers over time."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.actions import (
    Action,
    Kill,
    Park,
    Resume,
    Retire,
    RollEnded,
    RollPolicy,
    RollProgress,
    Spawn,
)
from gunicorn_cluster_ext.supervisor.backoff import RestartLimits, RestartPolicy
from gunicorn_cluster_ext.supervisor.rolling import ROLL, Replacer
from gunicorn_cluster_ext.supervisor.slots import Process, Role, SlotTable

RESTARTS = RestartPolicy.of(Settings(restart_delay=1.0, restart_limit=None))
POLICY = RollPolicy.of(Settings(), SimpleNamespace(graceful_timeout=30), 3, probing=False)


class Bench:
    """A replacer whose processes do what the test says. The first ones have the keys 1, 2, ..."""

    def __init__(self, serving: int = 3, **policy: Any) -> None:
        self.now = 100.0
        self.policy = dataclasses.replace(POLICY, **policy)
        self.table = SlotTable(8)
        self.limits = RestartLimits(RESTARTS, lambda: 0.5)
        self.replacer = Replacer(self.table, self.limits)
        self.keys = 0
        for slot in range(serving):
            self.ready(self.spawn(slot), healthy=True)

    def spawn(self, slot: int) -> Process:
        self.keys += 1
        return self.table.add(self.keys, slot, self.replacer.version, self.now)

    def ready(self, process: Process, healthy: bool = False) -> Process:
        process.healthy, process.can_park = healthy, True
        self.table.note_state(process, State.READY, self.now)
        return process

    def gone(self, process: Process) -> None:
        self.table.remove(process.key)

    def process(self, key: int) -> Process:
        process = self.table.get(key)
        assert process is not None
        return process

    def current(self, slot: int) -> Process:
        process = self.table.current(slot)
        assert process is not None
        return process

    def next(self, slot: int) -> Process:
        process = self.table.next(slot)
        assert process is not None
        return process

    @property
    def roll(self) -> RollProgress:
        assert self.replacer.roll is not None
        return self.replacer.roll

    def begin(self, before: int = 3) -> list[Action]:
        return self.replacer.begin_roll(self.policy.target, before, self.now)

    def plan(self, after: float = 0.0) -> list[Action]:
        """Return what is planned, without spawning anything."""
        self.now += after
        return self.replacer.plan(self.policy, self.now)

    def spawns(self) -> list[Process]:
        """Spawn what is planned; nothing else may be planned."""
        actions = self.plan()
        assert all(isinstance(each, Spawn) for each in actions), actions
        return [self.spawn(each.slot) for each in actions if isinstance(each, Spawn)]

    def replace(self, slot: int) -> Process:
        """Do one step of a roll with surge 1. Return the predecessor."""
        old = self.current(slot)
        (new,) = self.spawns()
        assert new.place.slot == slot
        self.ready(new, healthy=True)
        self.now += 1.0
        return old


# --- a roll, one after the other ----------------------------------------------------------------


def test_nothing_is_planned_while_all_serve() -> None:
    assert Bench().plan() == []


def test_the_first_processes_are_spawned_together() -> None:
    assert Bench(serving=0).plan() == [Spawn(0), Spawn(1), Spawn(2)]


def test_a_roll_replaces_one_after_the_other() -> None:
    bench = Bench()
    assert bench.begin() == []
    for slot in range(3):
        old = bench.current(slot)
        assert bench.plan() == [Spawn(slot)]
        new = bench.spawn(slot)
        assert bench.plan(1.0) == [], "it boots"
        bench.ready(new)
        # The next one is spawned in the same turn.
        expected = (
            [Retire(old), Spawn(slot + 1)]
            if slot < 2
            else [Retire(old), RollEnded(bench.roll, False)]
        )
        assert bench.plan(1.0) == expected
        assert (old.role, old.retire_reason, new.role) == (Role.RETIRED, ROLL, Role.CURRENT)
        assert bench.roll.replaced == slot + 1
    assert bench.roll.state is RollState.COMMITTED
    assert bench.plan(1.0) == []


def test_a_surge_of_two_replaces_two_at_a_time() -> None:
    bench = Bench(surge=2)
    bench.begin()
    assert [each.place.slot for each in bench.spawns()] == [0, 1]
    old = bench.current(1)
    bench.ready(bench.next(1))
    assert bench.plan() == [Retire(old), Spawn(2)]


def test_without_a_surge_the_old_process_exits_before_its_successor_starts() -> None:
    bench = Bench(surge=0, unavailable=1)
    bench.begin()
    old = bench.current(0)
    assert bench.plan() == [Retire(old)]
    assert bench.plan(5.0) == [], "it is finishing, and uses memory"
    bench.gone(old)
    (new,) = bench.spawns()
    assert bench.plan(5.0) == []
    bench.ready(new)
    assert bench.plan() == [Retire(bench.process(2))]


def test_surge_and_unavailable_add_up() -> None:
    bench = Bench(surge=1, unavailable=1)
    bench.begin()
    dismissed = bench.current(1)
    assert bench.plan() == [Spawn(0), Retire(dismissed)]
    bench.spawn(0)
    assert bench.plan() == [Spawn(1)], "retired processes do not count"
    bench.spawn(1)
    assert bench.plan() == []


def test_all_may_be_unavailable_at_once() -> None:
    bench = Bench(surge=0, unavailable=3)
    bench.begin()
    assert bench.plan() == [Retire(bench.process(key)) for key in (1, 2, 3)]


def test_a_process_that_boots_when_the_roll_begins_is_retired() -> None:
    bench = Bench(serving=2)
    old = bench.spawn(2)
    bench.begin()
    assert bench.plan() == [Spawn(0), Retire(old)]
    assert bench.plan() == [Spawn(2), Spawn(0)], "it has not been spawned yet"


def test_a_successor_from_before_the_roll_is_retired() -> None:
    bench = Bench()
    bench.replacer.mark_due(bench.current(1), "max_requests", bench.now)
    (successor,) = bench.spawns()
    assert bench.begin() == [Retire(successor)]
    assert successor.retire_reason == "another roll began"
    assert bench.current(1).replace_reason == ROLL


def test_a_slot_with_two_processes_waits_until_one_has_exited() -> None:
    bench = Bench(target=1, serving=1)
    bench.begin()
    old = bench.replace(0)
    bench.plan()
    bench.begin()
    assert bench.plan(1.0) == []
    bench.gone(old)
    assert bench.plan() == [Spawn(0)]


def test_a_process_that_dies_during_the_roll_is_replaced_by_a_new_one() -> None:
    bench = Bench()
    bench.begin()
    bench.spawns()
    bench.gone(bench.current(2))
    (new,) = bench.spawns()
    assert (new.place.slot, new.version) == (2, bench.roll.version)


def test_a_roll_resets_the_backoff() -> None:
    bench = Bench()
    bench.gone(bench.current(1))
    bench.limits.note_failure(1, None, bench.now)
    assert bench.plan() == []
    bench.begin()
    assert bench.plan() == [Spawn(1), Spawn(0)]


def test_spawns_for_empty_slots_count_towards_the_surge() -> None:
    bench = Bench()
    bench.begin()
    bench.gone(bench.current(1))
    assert bench.plan() == [Spawn(1), Spawn(0)], "three and one"
    bench.gone(bench.current(2))
    assert bench.plan() == [Spawn(1), Spawn(2), Spawn(0)]


def test_additional_slots_are_filled_before_any_process_is_replaced() -> None:
    bench = Bench(target=5)
    bench.begin()
    assert [each.place.slot for each in bench.spawns()] == [3, 4, 0]


def test_the_roll_follows_a_change_of_the_target() -> None:
    bench = Bench()
    bench.begin()
    bench.replace(0)
    bench.policy = dataclasses.replace(bench.policy, target=2)
    surplus = bench.current(2)
    assert bench.plan()[-1] == Spawn(1)
    assert (bench.roll.replaced, bench.roll.total) == (1, 2)
    bench.ready(bench.spawn(1))
    bench.plan()
    assert bench.roll.state is RollState.COMMITTED
    assert bench.plan() == [Retire(surplus)]


def test_a_failed_roll_keeps_the_workers_that_it_would_have_removed() -> None:
    bench = Bench(serving=4, target=2)
    bench.begin(before=4)
    (new,) = bench.spawns()
    bench.gone(new)
    bench.replacer.process_failed(new, "exited", bench.now)
    bench.policy = dataclasses.replace(bench.policy, target=4)
    assert bench.plan() == []
    assert bench.table.serving() == 4


def test_recycling_of_new_processes_waits_for_the_roll() -> None:
    """Otherwise the roll of a busy server whose workers live for few requests would never end."""
    bench = Bench()
    bench.begin()
    for slot in range(3):
        new = bench.ready(bench.spawn(slot))
        bench.replacer.mark_due(new, "max_requests", bench.now)
        actions = bench.plan(1.0)
        assert bench.current(slot) is new
        assert actions[1:] == ([Spawn(slot + 1)] if slot < 2 else [RollEnded(bench.roll, False)])
    bench.gone(bench.process(1))
    assert bench.plan(1.0) == [Spawn(0)]


# --- readiness and health -----------------------------------------------------------------------


def test_a_successor_takes_over_when_it_is_healthy() -> None:
    bench = Bench(probing=True)
    bench.begin()
    (new,) = bench.spawns()
    bench.ready(new)
    assert bench.plan(1.0) == []
    new.healthy = True
    assert bench.plan()[0] == Retire(bench.process(1))


def test_a_new_process_without_a_passed_check_does_not_count() -> None:
    """This also holds without a surge; otherwise the roll would retire them all."""
    bench = Bench(probing=True, surge=0, unavailable=1)
    bench.begin()
    old = bench.current(0)
    assert bench.plan() == [Retire(old)]
    bench.gone(old)
    (new,) = bench.spawns()
    bench.ready(new)
    assert bench.plan(1.0) == []
    new.healthy = True
    assert bench.plan() == [Retire(bench.process(2))]


def test_old_processes_need_not_have_passed_a_check() -> None:
    """The check may be new with the roll."""
    bench = Bench(probing=True, surge=0, unavailable=1)
    for old in bench.table:
        old.healthy = False
    bench.begin()
    assert bench.plan() == [Retire(bench.process(1))]


def test_a_process_that_never_passed_a_check_can_be_replaced_without_a_surge() -> None:
    bench = Bench(probing=True, surge=0, unavailable=1)
    for process in bench.table:
        process.healthy = False
        bench.replacer.mark_due(process, "is not healthy", bench.now)
    assert bench.plan() == [Retire(bench.process(1))]


def test_a_process_that_is_being_aborted_does_not_take_over() -> None:
    bench = Bench()
    bench.begin()
    (new,) = bench.spawns()
    new.kill_reason, new.retired_at = "did not become ready", bench.now
    bench.ready(new)
    assert bench.plan(1.0) == []


# --- a roll that fails --------------------------------------------------------------------------


def test_a_new_process_that_fails_ends_the_roll() -> None:
    bench = Bench()
    bench.begin()
    bench.replace(0)
    bench.spawn(1)
    bench.plan()
    bench.gone(bench.next(1))
    failed = Process(9, bench.current(1).place, bench.roll.version, 0.0, Role.RETIRED)
    assert bench.replacer.process_failed(failed, "was ended by SIGKILL", bench.now) == [
        RollEnded(bench.roll, undone=False)
    ]
    assert (bench.roll.state, bench.roll.reason) == (
        RollState.FAILED,
        "worker 1 was ended by SIGKILL",
    )
    assert [each.replace_reason for each in bench.table] == [""] * 4
    assert bench.plan(1.0) == []


def test_new_processes_that_have_not_taken_over_are_retired() -> None:
    bench = Bench(surge=2, probing=True)
    bench.begin()
    first, second = bench.spawns()
    bench.ready(first)
    actions = bench.replacer.fail_roll("because", bench.now)
    assert actions == [Retire(first), Retire(second), RollEnded(bench.roll, undone=True)]
    assert second.retire_reason == "the roll failed"
    assert bench.plan(1.0) == []


def test_a_new_process_that_boots_in_an_empty_slot_is_retired() -> None:
    """It would load what has just failed; the arbiter may have the old configuration by then."""
    bench = Bench(surge=0, unavailable=1)
    bench.begin()
    bench.plan()
    bench.gone(next(iter(bench.table)))
    (new,) = bench.spawns()
    assert bench.replacer.fail_roll("because", bench.now) == [
        Retire(new),
        RollEnded(bench.roll, undone=True),
    ]
    bench.gone(new)
    assert bench.plan() == [Spawn(0)]


def test_the_failure_of_an_old_process_does_not_fail_the_roll() -> None:
    bench = Bench()
    old = bench.current(0)
    assert bench.replacer.process_failed(old, "died", bench.now) == []
    bench.begin()
    assert bench.replacer.process_failed(old, "died", bench.now) == []
    assert bench.roll.is_active


def test_a_roll_ends_once() -> None:
    bench = Bench()
    assert bench.replacer.fail_roll("because", bench.now) == []
    bench.begin()
    assert len(bench.replacer.fail_roll("because", bench.now)) == 1
    assert bench.replacer.fail_roll("because", bench.now) == []
    new = bench.spawn(0)
    assert bench.replacer.process_failed(new, "died", bench.now) == []


def test_a_refused_reload_is_a_failed_roll() -> None:
    bench = Bench()
    assert bench.replacer.refuse_roll("no such module", 3, bench.now)
    assert (bench.roll.state, bench.roll.version) == (RollState.FAILED, 1)
    assert bench.roll.reason == "the reload was refused: no such module"
    assert (bench.roll.replaced, bench.roll.total) == (0, 3)
    assert bench.plan() == []
    bench.begin()
    assert (bench.roll.state, bench.roll.version) == (RollState.ROLLING, 2)


def test_a_refused_reload_does_not_disturb_the_current_roll() -> None:
    bench = Bench()
    bench.begin()
    begun = bench.roll
    assert not bench.replacer.refuse_roll("no such module", 3, bench.now)
    assert bench.roll is begun and begun.is_active


def test_a_roll_is_undone_if_only_additional_slots_have_new_processes() -> None:
    bench = Bench(target=4)
    bench.begin(before=3)
    new = bench.spawns()[0]
    assert new.place.slot == 3
    bench.ready(new)
    assert bench.replacer.fail_roll("because", bench.now)[-1] == RollEnded(bench.roll, undone=True)


def test_a_roll_is_observed_after_the_last_replacement() -> None:
    bench = Bench(target=1, serving=1, observe=5.0)
    bench.begin()
    old = bench.replace(0)
    assert bench.plan() == [Retire(old)]
    assert bench.roll.state is RollState.OBSERVING
    assert bench.plan(4.9) == []
    assert bench.plan(0.2) == [RollEnded(bench.roll, undone=False)]
    assert bench.roll.state is RollState.COMMITTED


def test_a_crash_during_the_observation_fails_the_roll() -> None:
    bench = Bench(target=2, serving=2, observe=5.0)
    bench.begin(before=2)
    bench.replace(0)
    bench.plan()
    bench.ready(bench.spawn(1))
    bench.plan()
    crashed = bench.current(1)
    bench.gone(crashed)
    assert bench.replacer.process_failed(crashed, "crashed", bench.now) == [
        RollEnded(bench.roll, False)
    ]
    assert bench.plan() == [Spawn(1)]


# --- full rollback ------------------------------------------------------------------------------


def roll_with_two_replaced(**policy: Any) -> Bench:
    bench = Bench(full=True, **policy)
    bench.begin()
    for slot in range(2):
        old = bench.replace(slot)
        assert bench.plan()[0] == Park(old)
        bench.table.note_state(old, State.PARKED, bench.now)
    return bench


def test_parked_processes_are_retired_when_the_roll_is_committed() -> None:
    bench = roll_with_two_replaced()
    parked = [each for each in bench.table if each.role is Role.PARKED]
    last = bench.current(2)
    bench.ready(bench.spawn(2))
    assert bench.plan() == [
        Park(last),
        Retire(parked[0]),
        Retire(parked[1]),
        Retire(last),
        RollEnded(bench.roll, undone=False),
    ]


def test_parked_processes_are_resumed_when_the_roll_fails() -> None:
    bench = roll_with_two_replaced()
    parked = [each for each in bench.table if each.role is Role.PARKED]
    new = [bench.current(0), bench.current(1)]
    assert bench.replacer.fail_roll("because", bench.now) == [
        Resume(parked[0]),
        Resume(parked[1]),
        RollEnded(bench.roll, undone=True),
    ]
    assert bench.plan() == [], "the new ones serve until the old ones do again"
    bench.ready(parked[0])
    assert bench.plan() == [Retire(new[0])]
    bench.ready(parked[1])
    assert bench.plan() == [Retire(new[1])]
    assert [bench.current(slot).version for slot in range(3)] == [0, 0, 0]


def test_a_parked_process_is_resumed_where_the_new_one_crashed() -> None:
    bench = roll_with_two_replaced()
    crashed = bench.current(0)
    bench.gone(crashed)
    assert bench.replacer.process_failed(crashed, "crashed", bench.now)[-1] == RollEnded(
        bench.roll, True
    )
    assert bench.current(0).key == 1
    assert bench.plan(1.0) == [], "it is being resumed, so none is spawned"


def test_a_parked_process_that_is_being_killed_is_not_resumed() -> None:
    bench = roll_with_two_replaced()
    parked = [each for each in bench.table if each.role is Role.PARKED]
    parked[0].kill_reason, parked[0].retired_at = "hangs", bench.now
    assert bench.replacer.fail_roll("because", bench.now) == [
        Resume(parked[1]),
        RollEnded(bench.roll, undone=False),
    ]


def test_a_process_that_cannot_be_parked_is_retired() -> None:
    bench = Bench(full=True)
    bench.begin()
    old = bench.current(0)
    old.can_park = False
    bench.replace(0)
    assert bench.plan()[0] == Retire(old)
    assert bench.replacer.fail_roll("because", bench.now)[-1] == RollEnded(bench.roll, undone=False)


def test_without_a_surge_parked_processes_make_room() -> None:
    bench = Bench(full=True, surge=0, unavailable=1)
    bench.begin()
    assert bench.plan() == [Park(bench.process(1))]
    assert bench.plan() == [Spawn(0)]


def test_a_roll_that_follows_an_undone_roll_ends() -> None:
    """The second roll finds a new process, and an old one that is being resumed in its place."""
    bench = roll_with_two_replaced()
    oldest, first = [each for each in bench.table if each.place.slot == 0]
    bench.replacer.fail_roll("another roll began", bench.now)
    bench.begin()
    bench.ready(oldest)
    assert bench.plan() == [Retire(first)], "not parked: that would leave no seat"
    bench.gone(first)
    bench.ready(bench.next(1))
    assert Spawn(0) in bench.plan()


# --- processes that do not exit -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "kill_reason", "timeout"), [(True, "", 31.0), (False, "", 2.0), (True, "hangs", 2.0)]
)
def test_a_process_that_does_not_exit_is_killed_once(
    ready: bool, kill_reason: str, timeout: float
) -> None:
    bench = Bench(serving=0, target=0)
    process = bench.spawn(0)
    if ready:
        bench.ready(process)
    process.kill_reason = kill_reason
    bench.replacer.retire(process, "because", bench.now)
    assert bench.plan(timeout) == []
    assert bench.plan(0.1) == [Kill(process, f"did not finish within {timeout:g} s")]
    assert bench.plan(9.0) == []


def test_a_process_is_retired_once() -> None:
    bench = Bench()
    process = bench.current(0)
    assert bench.replacer.retire(process, "because", bench.now) == [Retire(process)]
    assert bench.replacer.retire(process, "why not", bench.now + 1) == []
    assert (process.retired_at, process.retire_reason, process.replace_reason) == (
        100.0,
        "because",
        "",
    )


# --- more and fewer workers ---------------------------------------------------------------------


def test_the_highest_slots_are_retired_first() -> None:
    bench = Bench(serving=4)
    bench.policy = dataclasses.replace(bench.policy, target=2)
    assert bench.plan() == [Retire(bench.process(4)), Retire(bench.process(3))]
    assert bench.plan() == []


def test_a_surplus_process_stays_while_too_few_others_serve() -> None:
    bench = Bench(serving=0, target=1)
    booting, serving = bench.spawn(0), bench.ready(bench.spawn(1))
    assert bench.plan() == []
    bench.ready(booting)
    assert bench.plan() == [Retire(serving)]


def test_a_surplus_process_that_does_not_serve_is_retired_at_once() -> None:
    bench = Bench(serving=0, target=1)
    bench.spawn(0)
    surplus = bench.spawn(1)
    assert bench.plan() == [Retire(surplus)]


def test_surplus_processes_do_not_keep_the_lower_slots_empty() -> None:
    bench = Bench(serving=0, target=2, surge=0, unavailable=1)
    for slot in (2, 3):
        bench.ready(bench.spawn(slot))
    assert bench.plan()[0] == Retire(bench.process(2))
    bench.gone(bench.process(2))
    assert bench.plan() == [Spawn(0)]


# --- empty slots --------------------------------------------------------------------------------


def test_an_empty_slot_waits_for_its_backoff() -> None:
    bench = Bench()
    bench.gone(bench.current(1))
    bench.limits.note_failure(1, None, bench.now)
    assert bench.plan(0.9) == []
    assert bench.plan(0.2) == [Spawn(1)]


def test_with_no_process_left_one_is_tried_each_second() -> None:
    bench = Bench(serving=0)
    for slot in range(3):
        for _ in range(10):
            bench.limits.note_failure(slot, None, bench.now)
    tried = [now for now in range(50) if bench.plan(0.1)]
    assert len(tried) == 5
    assert bench.plan(1.0) == [Spawn(0)]
    bench.spawn(0)
    assert bench.plan(2.0) == []


# --- recycling ----------------------------------------------------------------------------------


def test_a_due_process_is_replaced_by_a_successor() -> None:
    bench = Bench()
    old = bench.current(1)
    bench.replacer.mark_due(old, "max_requests", bench.now)
    (new,) = bench.spawns()
    assert new.role is Role.NEXT
    assert bench.plan(1.0) == []
    bench.ready(new)
    assert bench.plan() == [Retire(old)]
    assert old.retire_reason == "max_requests"


@pytest.mark.parametrize("surge", [1, 3])
def test_due_processes_are_replaced_one_at_a_time_the_longest_due_first(surge: int) -> None:
    bench = Bench(surge=surge)
    for slot in (2, 0, 1):
        bench.replacer.mark_due(bench.current(slot), "max_requests", bench.now + 3 - slot)
    for slot in (2, 1, 0):
        old = bench.current(slot)
        (new,) = bench.spawns()
        assert bench.plan(1.0) == []
        bench.ready(new)
        assert bench.plan()[0] == Retire(old)


def test_due_processes_are_replaced_one_at_a_time_if_more_may_be_unavailable() -> None:
    bench = Bench(surge=0, unavailable=3)
    for slot in range(3):
        bench.replacer.mark_due(bench.current(slot), "max_requests", bench.now)
    first = bench.current(0)
    assert bench.plan() == [Retire(first)]
    assert bench.plan() == []
    bench.gone(first)
    (new,) = bench.spawns()
    assert bench.plan() == []
    bench.ready(new)
    assert bench.plan() == [Retire(bench.process(2))]


def test_a_slot_whose_predecessor_drains_delays_no_other_slot() -> None:
    bench = Bench()
    bench.replacer.mark_due(bench.current(0), "max_requests", bench.now)
    bench.replace(0)
    bench.plan()
    bench.replacer.mark_due(bench.current(0), "max_requests", bench.now)
    assert bench.plan() == []
    bench.replacer.mark_due(bench.current(2), "max_requests", bench.now + 1)
    assert bench.plan() == [Spawn(2)]


def test_a_slot_in_backoff_delays_no_other_slot() -> None:
    bench = Bench()
    bench.gone(bench.current(0))
    bench.limits.note_failure(0, None, bench.now)
    bench.replacer.mark_due(bench.current(2), "max_requests", bench.now)
    assert bench.plan() == [Spawn(2)]


def test_a_failed_successor_is_tried_again_after_the_backoff() -> None:
    bench = Bench()
    bench.replacer.mark_due(bench.current(1), "max_requests", bench.now)
    bench.gone(bench.spawns()[0])
    bench.limits.note_failure(1, None, bench.now)
    assert bench.plan(0.9) == []
    assert bench.plan(0.2) == [Spawn(1)]


def test_a_failed_successor_delays_no_other_slot() -> None:
    bench = Bench()
    for slot in (1, 2):
        bench.replacer.mark_due(bench.current(slot), "max_requests", bench.now + slot)
    bench.limits.note_failure(1, None, bench.now)
    assert bench.plan() == [Spawn(2)]


def test_the_first_reason_is_kept_unless_a_roll_follows() -> None:
    bench = Bench()
    process = bench.current(0)
    bench.replacer.mark_due(process, "max_requests", 1.0)
    bench.replacer.mark_due(process, "memory", 2.0)
    assert (process.replace_reason, process.due_since) == ("max_requests", 1.0)
    bench.replacer.mark_due(process, ROLL, 3.0)
    assert (process.replace_reason, process.due_since) == (ROLL, 3.0)
