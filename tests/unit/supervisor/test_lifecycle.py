"""A whole cluster around the supervisor: a model carries out what it says, over time."""

import dataclasses
import random
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from gunicorn_cluster_ext.supervisor.actions import (
    Abort,
    Action,
    Kill,
    Park,
    Resume,
    Retire,
    RollEnded,
    RollPolicy,
    Spawn,
)
from gunicorn_cluster_ext.supervisor.backoff import RestartPolicy
from gunicorn_cluster_ext.supervisor.exits import LOAD_ERROR, Exit
from gunicorn_cluster_ext.supervisor.lifecycle import ExitOutcome, Lifecycle
from gunicorn_cluster_ext.supervisor.rolling import DRAIN_SLACK_S, EXIT_TIMEOUT_S
from gunicorn_cluster_ext.supervisor.slots import Process, Role

CAPACITY = 5
TICK = 0.25
RESTARTS = RestartPolicy(
    delay=0.1, delay_max=3.0, min_uptime=10.0, limit=20, window=60.0, halt=False
)
POLICY = RollPolicy(
    target=3,
    surge=1,
    unavailable=0,
    full=False,
    observe=0.0,
    startup=4.0,
    drain=3.0,
    probing=False,
)
RECYCLED = "max_requests"
SEGFAULT = Exit(None, signal.SIGSEGV)


@dataclass(frozen=True)
class Fate:
    """What becomes of a process."""

    boot: float = 0.5  # after so many seconds it is ready,
    fails: Exit | None = None  # or ends so;
    hangs: bool = False  # or never is anything
    lives: float | None = None  # crashes when it was ready for so long
    drain: float = 0.5
    refuses: bool = False  # goes only when it is killed
    sick: bool = False  # fails its health checks
    can_park: bool = True


GOOD = Fate()
FAILURES = {
    "does not load": Fate(fails=Exit(LOAD_ERROR, None)),
    "exits": Fate(fails=Exit(1, None)),
    "crashes while it boots": Fate(fails=SEGFAULT),
    "hangs": Fate(hangs=True),
    "hangs for good": Fate(hangs=True, refuses=True),
}


@dataclass(eq=False)
class Worker:
    """A process as it really is. Once it is told, ``goes`` says when, if it does by itself."""

    process: Process
    fate: Fate
    forked: float
    order: State = State.READY
    goes: float | None = None
    exit: Exit = field(default=Exit(0, None))

    def ends(self, now: float) -> Exit | None:
        fate, process = self.fate, self.process
        if self.goes is not None and now >= self.goes:
            return self.exit
        if process.ready_at is None and fate.fails and now >= self.forked + fate.boot:
            return fate.fails
        is_out = process.ready_at is not None and fate.lives is not None
        if is_out and now >= (process.ready_at or 0.0) + (fate.lives or 0.0):
            return SEGFAULT
        return None

    def becomes(self, now: float) -> State | None:
        """The next state that it writes on the board, if it does now."""
        fate, state = self.fate, self.process.state
        if state is State.BOOTING:
            boots = not (fate.fails or fate.hangs) and now >= self.forked + fate.boot
            return State.READY if boots and self.goes is None else None
        if self.goes is not None and state is not State.DRAINING and not fate.refuses:
            return State.DRAINING
        return self.order if state in (State.READY, State.PARKED) and state != self.order else None


class Cluster:
    """Does what the lifecycle says, and checks at once that nothing serves less for it."""

    def __init__(
        self, policy: RollPolicy = POLICY, restarts: RestartPolicy = RESTARTS, seed: int = 0
    ) -> None:
        self.now = 1_000.0
        self.policy = policy
        self.lifecycle = Lifecycle(CAPACITY, restarts, random.Random(seed).random)
        self.table = self.lifecycle._table
        self.replacer = self.lifecycle._replacer
        self.workers: dict[int, Worker] = {}
        self.fates: deque[Fate] = deque()
        self.boots: list[float] = []
        self.rolls: list[RollEnded] = []
        self.outcomes: list[ExitOutcome] = []
        self.gaps: set[int] = set()  # emptied in order to recycle, and not filled again

    # --- time ---------------------------------------------------------------------------------

    def run(self, seconds: float, tick: float = TICK) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.step(tick)

    def run_until(self, done: Callable[[], bool], limit: float) -> None:
        end = self.now + limit
        while not done():
            assert self.now < end, f"not within {limit} s: {self.table} {self.replacer.roll}"
            self.step()

    def step(self, tick: float = TICK) -> None:
        self.now += tick
        for worker in list(self.workers.values()):
            self.live(worker)
        self.turn()
        self.check()

    def live(self, worker: Worker) -> None:
        exit = worker.ends(self.now)
        if exit is not None:
            return self.end(worker, exit)
        process, state = worker.process, worker.becomes(self.now)
        if state is not None:
            process.can_park = worker.fate.can_park
            self.lifecycle.note_state(process, state, self.now)
            self.gaps -= {process.place.slot} if state is State.READY else set()
        elif self.policy.probing and process.serves and self.now > (process.ready_at or 0.0) + 0.5:
            self.probe(worker)

    def probe(self, worker: Worker) -> None:
        worker.process.healthy = not worker.fate.sick
        if worker.fate.sick:
            self.call(self.lifecycle.unhealthy, worker.process, "is not healthy", self.now)

    def end(self, worker: Worker, exit: Exit) -> None:
        process = worker.process
        del self.workers[process.key]
        outcome = self.lifecycle.exited(process.key, exit, self.now)
        assert outcome is not None
        self.outcomes.append(outcome)
        if not outcome.expected:
            self.gaps.discard(process.place.slot)
        self.execute(outcome.actions)

    def turn(self) -> None:
        good = self.good()
        self.call(self.lifecycle.plan, self.policy, self.now)
        floor = self.policy.target - self.policy.unavailable
        assert self.good() >= min(good, floor), "it relied upon what may not be healthy"

    # --- what the lifecycle says ---------------------------------------------------------------

    def call(self, function: Callable[..., list[Action]], *args: object) -> None:
        """Whatever it decides, it does not take away what is needed."""
        before = self.serving()
        actions = function(*args)
        floor = self.policy.target - self.policy.unavailable
        assert self.serving() >= min(before, floor), actions
        self.execute(actions)

    def serving(self) -> int:
        """In how many slots the process that holds it serves."""
        return sum(each.role is Role.CURRENT and each.serves for each in self.table)

    def good(self) -> int:
        """In how many it is also known to be healthy, or was relied upon before the last roll."""
        return sum(
            each.healthy or not self.policy.probing or each.version < self.replacer.version
            for each in self.table
            if each.role is Role.CURRENT and each.serves
        )

    def execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(slot):
                    self.spawn(slot)
                case RollEnded():
                    self.over(action)
                case Kill(process, _):
                    self.end(self.workers[process.key], Exit(None, signal.SIGKILL))
                case Retire(process):
                    self.check_told(process)
                    self.leave(self.workers[process.key], Exit(0, None))
                case Abort(process, _):
                    self.workers[process.key].goes = None
                    self.leave(self.workers[process.key], Exit(None, signal.SIGABRT))
                case Park(process):
                    assert process.can_park and self.policy.full
                    self.workers[process.key].order = State.PARKED
                case Resume(process):
                    self.workers[process.key].order = State.READY

    def leave(self, worker: Worker, exit: Exit) -> None:
        if worker.goes is None and not worker.fate.refuses:
            drain = worker.fate.drain if worker.process.ready_at else 0.1
            worker.goes, worker.exit = self.now + drain, exit

    def spawn(self, slot: int) -> None:
        key = len(self.boots)
        process = self.lifecycle.add(key, slot, self.now)
        self.boots.append(self.now)
        fate = self.fates.popleft() if self.fates else GOOD
        self.workers[key] = Worker(process, fate, self.now)
        roles = [Role.CURRENT, Role.NEXT] + [Role.RETIRED] * (self.policy.surge == 0)
        there = [each for each in self.table if not self.replacer.is_held(each, self.policy)]
        most = self.policy.target + self.policy.surge
        assert sum(each.role in roles for each in there) <= most
        if process.role is Role.NEXT and not self.is_rolling:
            assert self.table.count(Role.NEXT) == 1 and not self.gaps, "one at a time"

    @property
    def is_rolling(self) -> bool:
        roll = self.replacer.roll
        return roll is not None and roll.state is RollState.ROLLING

    @property
    def is_active(self) -> bool:
        roll = self.replacer.roll
        return roll is not None and roll.is_active

    def check_told(self, process: Process) -> None:
        slot = process.place.slot
        if (
            process.retire_reason == RECYCLED
            and self.table.current(slot) is None
            and not self.is_rolling
        ):
            assert self.gaps <= {slot} and not self.table.count(Role.NEXT), "one at a time"
            self.gaps.add(slot)

    def over(self, ended: RollEnded) -> None:
        """As the arbiter does, take back the old configuration if nothing of the new is left."""
        assert ended.roll is self.replacer.roll
        assert ended.roll.state in (RollState.COMMITTED, RollState.FAILED)
        assert bool(ended.roll.reason) is (ended.roll.state is RollState.FAILED)
        assert not any(each.roll is ended.roll for each in self.rolls)
        self.rolls.append(ended)
        if ended.undone:
            self.want(ended.roll.before)

    # --- what people want -----------------------------------------------------------------------

    def want(self, target: int) -> None:
        self.policy = dataclasses.replace(self.policy, target=target)
        self.gaps = {slot for slot in self.gaps if slot < target}

    def reload(self, policy: RollPolicy | None = None) -> None:
        self.call(self.lifecycle.fail_roll, "another roll began", self.now)
        before = self.policy.target
        self.policy = policy or self.policy
        self.gaps.clear()
        self.call(self.lifecycle.begin_roll, self.policy.target, before, self.now)

    def terminate(self, worker: Worker) -> None:
        """An operator sends it SIGTERM. Before it has a handler, that is its end."""
        if worker.process.ready_at is None:
            self.end(worker, Exit(None, signal.SIGTERM))
        else:
            self.leave(worker, Exit(0, None))

    # --- what is always so ----------------------------------------------------------------------

    def check(self) -> None:
        assert {each.key for each in self.table} == set(self.workers)
        longest = max(self.policy.drain + DRAIN_SLACK_S, EXIT_TIMEOUT_S) + 2 * TICK
        for process in self.table:
            assert process.retired_at is None or self.now - process.retired_at <= longest, process
            parked = process.role is Role.PARKED
            assert not parked or self.is_active or process.retired_at is not None, process
        for slot in range(CAPACITY):
            there = [each for each in self.table if each.place.slot == slot]
            assert len(there) <= 2
        for ended in self.rolls:
            assert not ended.roll.is_active

    def is_quiet(self) -> bool:
        """Whether all is as it should be, and nobody is on the way."""
        current = [self.table.current(slot) for slot in range(self.policy.target)]
        return (
            all(each is not None and each.serves and not each.replace_reason for each in current)
            and {each.role for each in self.table} <= {Role.CURRENT}
            and len(self.workers) == self.policy.target
            and not self.is_active
            and self.lifecycle.is_settled(self.policy.target)
        )

    def finish(self) -> None:
        """The roll ends, one way or the other."""
        self.run_until(lambda: not self.is_active, 90.0)

    def settle(self, limit: float = 90.0) -> None:
        """From now on, all goes well."""
        self.fates.clear()
        for worker in self.workers.values():
            worker.fate = dataclasses.replace(worker.fate, lives=None, sick=False)
        self.run_until(lambda: not self.is_active, limit)
        self.run_until(self.is_quiet, limit)

    def started(self) -> "Cluster":
        self.turn()
        self.run_until(self.is_quiet, 9.0)
        return self

    def slots(self) -> list[int]:
        """The key of the process that serves in each slot."""
        found = [self.table.current(slot) for slot in range(self.policy.target)]
        return [each.key for each in found if each is not None and each.serves]


def cluster(**policy: object) -> Cluster:
    """Three workers, 0 to 2, that serve."""
    return Cluster(dataclasses.replace(POLICY, **policy)).started()  # type: ignore[arg-type]


# --- anything, at any time ----------------------------------------------------------------------

some_seconds = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])
exits = st.sampled_from([Exit(LOAD_ERROR, None), Exit(3, None), Exit(0, None), SEGFAULT])
fates = st.builds(
    Fate,
    boot=some_seconds,
    fails=st.none() | st.none() | exits,
    hangs=st.integers(0, 9).map(lambda n: n == 0),
    lives=st.none() | st.none() | some_seconds,
    drain=some_seconds,
    refuses=st.integers(0, 4).map(lambda n: n == 0),
    sick=st.integers(0, 4).map(lambda n: n == 0),
    can_park=st.integers(0, 4).map(lambda n: n > 0),
)
limits = st.sampled_from([(1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (2, 3)])
policies = st.builds(
    lambda limits, **others: RollPolicy(surge=limits[0], unavailable=limits[1], **others),
    limits,
    target=st.integers(1, CAPACITY - 1),
    full=st.booleans(),
    observe=st.sampled_from([0.0, 1.0]),
    startup=st.just(4.0),
    drain=st.just(3.0),
    probing=st.booleans(),
)


class AnyHistory(RuleBasedStateMachine):
    """Reloads, crashes, hangs, signals and wishes, in any order. In the end all must be well."""

    @initialize(policy=policies, seed=st.integers(0, 9))
    def start(self, policy: RollPolicy, seed: int) -> None:
        self.cluster = Cluster(policy, seed=seed)
        self.cluster.turn()

    def some(self, index: int, *states: State) -> Worker | None:
        found = [each for each in self.cluster.workers.values() if each.process.state in states]
        return found[index % len(found)] if found else None

    @rule(seconds=st.sampled_from([TICK, 1.0, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.cluster.run(seconds)

    @rule(some=st.lists(fates, min_size=1, max_size=3))
    def fate(self, some: list[Fate]) -> None:
        """What becomes of the next that are forked."""
        self.cluster.fates.extend(some)

    @rule(policy=policies, same=st.booleans())
    def reload(self, policy: RollPolicy, same: bool) -> None:
        self.cluster.reload(None if same else policy)
        self.cluster.turn()

    @rule(index=st.integers(0, 9))
    def crash(self, index: int) -> None:
        if worker := self.some(index, *State):
            self.cluster.end(worker, Exit(None, signal.SIGKILL))

    @rule(index=st.integers(0, 9))
    def hang(self, index: int) -> None:
        """gunicorn's timeout ends it; it may say READY a while longer."""
        if worker := self.some(index, State.READY, State.PARKED):
            lifecycle, now = self.cluster.lifecycle, self.cluster.now
            self.cluster.execute(lifecycle.abort(worker.process, "did not answer", now))

    @rule(index=st.integers(0, 9))
    def eat(self, index: int) -> None:
        """cluster_max_memory_hard."""
        if worker := self.some(index, State.READY):
            lifecycle, now = self.cluster.lifecycle, self.cluster.now
            self.cluster.execute(lifecycle.kill(worker.process, "ate too much", now))

    @rule(index=st.integers(0, 9))
    def terminate(self, index: int) -> None:
        if worker := self.some(index, State.BOOTING, State.READY, State.PARKED):
            self.cluster.terminate(worker)

    @rule(index=st.integers(0, 9), all_of_them=st.booleans())
    def recycle(self, index: int, all_of_them: bool) -> None:
        found = [self.some(index, State.READY)]
        for worker in self.cluster.workers.values() if all_of_them else found:
            if worker and worker.process.ready_at is not None:
                self.cluster.lifecycle.recycle(worker.process, RECYCLED, self.cluster.now)

    @rule(index=st.integers(0, 9))
    def sicken(self, index: int) -> None:
        if worker := self.some(index, State.READY):
            worker.fate = dataclasses.replace(worker.fate, sick=True)

    @rule()
    def ttin(self) -> None:
        self.cluster.want(min(self.cluster.policy.target + 1, CAPACITY))

    @rule()
    def ttou(self) -> None:
        self.cluster.want(max(self.cluster.policy.target - 1, 1))

    @rule()
    def settle(self) -> None:
        self.cluster.settle()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.cluster.check()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.settle()


AnyHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestAnyHistory = AnyHistory.TestCase


# --- reloads ------------------------------------------------------------------------------------


@given(policies, st.randoms(use_true_random=False))
def test_a_reload_of_good_code_replaces_everybody_and_nobody_is_missed(
    policy: RollPolicy, random: random.Random
) -> None:
    some = Cluster(policy).started()
    some.fates.extend(Fate(boot=random.uniform(0, 3), drain=random.uniform(0, 3)) for _ in "abcd")
    some.reload()
    while some.is_active:
        some.step()
        assert some.serving() >= policy.target - policy.unavailable
        assert some.now < 1_000 + 60
    some.settle()
    assert some.rolls[-1].roll.state is RollState.COMMITTED
    assert len(some.boots) == 2 * policy.target
    assert {each.version for each in some.table} == {some.replacer.version}


@given(policies, st.sampled_from(sorted(FAILURES)), st.integers(0, 3))
def test_a_reload_of_bad_code_leaves_a_cluster_that_serves(
    policy: RollPolicy, failure: str, good: int
) -> None:
    """``full`` undoes it all; otherwise what it had replaced, or taken away, is new."""
    some = Cluster(policy).started()
    before = some.slots()
    some.fates.extend([GOOD] * (good % policy.target) + [FAILURES[failure]])
    some.reload()
    while some.is_active:
        some.step()
        assert some.serving() >= policy.target - policy.unavailable
    kept = {each.key for each in some.table if each.version == 0 and each.retired_at is None}
    if (policy.surge, policy.unavailable) == (1, 0):
        assert len(kept) == policy.target - (0 if policy.full else good % policy.target)
    some.settle()
    assert some.rolls[-1].roll.state is RollState.FAILED
    assert kept <= set(some.slots())
    if policy.full:
        assert some.slots() == before
        assert some.rolls[-1].undone


@pytest.mark.parametrize("failure", sorted(FAILURES))
@pytest.mark.parametrize("full", [False, True])
def test_the_third_of_four_fails(failure: str, full: bool) -> None:
    some = cluster(target=4, full=full)
    some.fates.extend([GOOD, GOOD, FAILURES[failure]])
    some.reload()
    while some.is_active:
        some.step()
        assert some.serving() == 4
    some.settle()
    assert some.slots() == ([0, 1, 2, 3] if full else [4, 5, 2, 3])
    assert some.rolls[-1].undone is full
    assert some.rolls[-1].roll.reason.startswith("worker 2 ")
    assert some.rolls[-1].roll.replaced == 2


def test_a_new_worker_that_is_not_healthy_fails_the_reload() -> None:
    some = cluster(probing=True)
    some.fates.append(Fate(sick=True))
    some.reload()
    some.finish()
    some.settle()
    assert some.slots() == [0, 1, 2]
    assert some.rolls[-1].roll.reason == "worker 0 is not healthy"
    assert some.rolls[-1].undone


@pytest.mark.parametrize("full", [False, True])
def test_a_crash_after_ready_fails_the_reload_while_it_is_observed(full: bool) -> None:
    some = cluster(observe=5.0, full=full)
    some.fates.extend([GOOD, GOOD, Fate(lives=2.0)])
    some.reload()
    some.finish()
    some.settle()
    assert some.rolls[-1].roll.state is RollState.FAILED
    assert "worker 2 was ended by SIGSEGV after serving" in some.rolls[-1].roll.reason
    assert some.slots() == ([0, 1, 2] if full else [3, 4, 6])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.5, 0.75, 1.0, 1.25])
def test_a_second_reload_is_the_one_that_counts(full: bool, after: float) -> None:
    some = cluster(full=full)
    some.reload()
    some.run(after)
    some.reload()
    while some.is_active:
        some.step()
        assert some.serving() == 3
    some.settle()
    assert [each.roll.state for each in some.rolls] == [RollState.FAILED, RollState.COMMITTED]
    assert {each.version for each in some.table} == {2}


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
@pytest.mark.parametrize("failure", [None, "exits"])
def test_a_reload_changes_how_many_there_are(before: int, after: int, failure: str | None) -> None:
    """And if it fails that is taken back as well."""
    some = cluster(target=before)
    some.fates.extend([FAILURES[failure]] if failure else [])
    some.reload(dataclasses.replace(some.policy, target=after))
    some.finish()
    some.settle()
    assert len(some.slots()) == (before if failure else after)
    if failure:
        assert some.slots()[:2] == [0, 1]


# --- crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [0.0, 0.1, 0.4])
@given(seed=st.integers(0, 1_000))
@settings(max_examples=20)
def test_three_that_die_soon_are_not_booted_without_end(boot: float, seed: int) -> None:
    """Stock gunicorn: 98 boots within ten seconds. A fourth serves all the time."""
    restarts = dataclasses.replace(RESTARTS, delay_max=30.0)
    some = Cluster(dataclasses.replace(POLICY, target=4), restarts, seed)
    some.fates.extend([GOOD] + [Fate(boot=boot, lives=0.3)] * 200)
    some.turn()
    some.run(10.0, tick=0.05)
    assert len(some.boots) - 1 <= 30
    assert some.table.current(0) and some.slots()[0] == 0


@pytest.mark.parametrize("boot", [0.0, 0.4])
@given(seed=st.integers(0, 1_000))
@settings(max_examples=20)
def test_neither_are_they_if_nobody_else_is_there(boot: float, seed: int) -> None:
    restarts = dataclasses.replace(RESTARTS, delay_max=30.0)
    some = Cluster(POLICY, restarts, seed)
    some.fates.extend([Fate(boot=boot, lives=0.3)] * 500)
    some.turn()
    some.run(10.0, tick=0.05)
    assert len(some.boots) <= 30
    some.run(50.0, tick=0.1)
    recent = [each for each in some.boots if each > some.now - 10]
    assert 3 <= len(recent) <= 11, "one is tried each second"


def test_the_first_exit_of_who_served_for_long_is_replaced_at_once() -> None:
    some = cluster()
    some.run(10.0)
    some.end(some.workers[1], SEGFAULT)
    assert some.outcomes[-1].delay == 0.0
    some.turn()
    assert len(some.boots) == 4
    some.end(some.workers[3], SEGFAULT)
    assert 0.08 <= some.outcomes[-1].delay <= 0.12


def test_what_was_expected_costs_nothing() -> None:
    """Recycling, TTOU, a reload, and an operator's SIGTERM."""
    some = cluster()
    some.lifecycle.recycle(some.workers[0].process, RECYCLED, some.now)
    some.run(5.0)
    some.terminate(some.workers[1])
    some.run(5.0)
    some.want(2)
    some.reload()
    some.settle()
    assert all(each.expected and not each.delay for each in some.outcomes)
    assert len(some.outcomes) == 5
    assert some.lifecycle.recent_exits(some.now) == 0


def test_whom_an_operator_ends_is_replaced_while_it_finishes() -> None:
    some = cluster()
    some.workers[1].fate = Fate(drain=3.0)
    some.terminate(some.workers[1])
    some.run(1.0)
    assert some.slots() == [0, 3, 2]
    assert 1 in some.workers


def test_a_long_life_that_ends_as_it_should_redeems_a_slot() -> None:
    some = cluster()
    for _ in range(4):
        process = some.table.current(1)
        assert process is not None
        some.end(some.workers[process.key], SEGFAULT)
        some.run(3.0)
    assert some.outcomes[-1].delay > 0.6
    some.run(10.0)
    some.lifecycle.recycle(some.workers[some.slots()[1]].process, RECYCLED, some.now)
    some.settle()
    some.end(some.workers[some.slots()[1]], SEGFAULT)
    assert some.outcomes[-1].delay <= 0.12


def test_what_was_not_does() -> None:
    some = cluster()
    some.end(some.workers[0], Exit(None, signal.SIGKILL))
    some.execute(some.lifecycle.abort(some.workers[1].process, "did not answer", some.now))
    some.execute(some.lifecycle.kill(some.workers[2].process, "ate too much", some.now))
    some.fates.extend([FAILURES["does not load"], FAILURES["hangs"]])
    some.run(8.0)
    words = [each.words.split(" after")[0].split(" before")[0] for each in some.outcomes]
    assert words == [
        "was ended by SIGKILL",
        "ate too much",
        "did not answer",
        "could not load the application (exit code 4)",
        "did not become ready within 4 s (cluster_startup_timeout)",
    ]
    assert not any(each.expected for each in some.outcomes)
    assert some.lifecycle.recent_exits(some.now) == 5


@pytest.mark.parametrize(("code", "halt"), [(3, 3), (4, 4), (1, 0)])
def test_a_server_that_never_served_ends_with_its_workers_code(code: int, halt: int) -> None:
    some = Cluster()
    some.turn()
    some.end(some.workers[0], Exit(code, None))
    assert some.outcomes[-1].halt == halt


def test_one_recycled_worker_that_cannot_boot_never_stops_the_server() -> None:
    some = cluster()
    some.fates.extend([FAILURES["does not load"]] * 50)
    some.lifecycle.recycle(some.workers[1].process, RECYCLED, some.now)
    some.run(30.0)
    assert some.slots() == [0, 1, 2]
    assert {each.halt for each in some.outcomes} == {0}
    assert 10 <= len(some.outcomes) <= 20
    some.settle()
    assert set(some.slots()) > {0, 2}


def test_unknown_processes_have_no_outcome() -> None:
    assert Lifecycle(1, RESTARTS, random.random).exited(99, SEGFAULT, 0.0) is None


# --- hangs, health, recycling -------------------------------------------------------------------


def test_who_does_not_boot_is_killed_if_it_does_not_go() -> None:
    some = Cluster()
    some.fates.extend([Fate(hangs=True), Fate(hangs=True, refuses=True)])
    some.turn()
    some.run(4.0)
    assert len(some.outcomes) == 0
    some.run(0.75)
    assert len(some.outcomes) == 1
    some.run(2.0)
    assert len(some.outcomes) == 2
    some.settle()


def test_any_time_to_boot_is_any_time() -> None:
    some = Cluster(dataclasses.replace(POLICY, startup=0.0))
    some.fates.append(Fate(boot=3_600.0))
    some.turn()
    some.run(3_700.0, tick=50.0)
    assert some.slots() == [0, 1, 2]


def test_a_process_is_aborted_once() -> None:
    some = cluster()
    process = some.workers[0].process
    assert some.lifecycle.abort(process, "hangs", some.now) == [Abort(process, "hangs")]
    assert some.lifecycle.abort(process, "hangs", some.now) == []
    assert some.lifecycle.kill(process, "eats", some.now) == [Kill(process, "eats")]
    assert (process.kill_reason, process.killed) == ("hangs", True)


def test_who_is_not_healthy_is_replaced_first() -> None:
    some = cluster(probing=True)
    some.workers[1].fate = Fate(sick=True)
    some.run(0.75)
    while not some.is_quiet():
        some.step()
        assert some.serving() == 3
    assert some.slots() == [0, 3, 2]


def test_successors_that_are_not_healthy_either_are_tried_ever_less_often() -> None:
    some = cluster(probing=True)
    some.workers[1].fate = Fate(sick=True)
    some.fates.extend([Fate(sick=True)] * 99)
    some.run(60.0)
    assert some.slots() == [0, 1, 2]
    assert 3 + 60 / 6.0 <= len(some.boots) <= 3 + 60 / 3.0


@given(st.sampled_from([(1, 0), (0, 1), (3, 0), (0, 3), (2, 2)]), st.integers(1, 5))
def test_all_are_recycled_one_at_a_time(limits: tuple[int, int], target: int) -> None:
    some = cluster(target=target, surge=limits[0], unavailable=limits[1])
    for worker in some.workers.values():
        some.lifecycle.recycle(worker.process, RECYCLED, some.now)
    for _ in range(400):
        some.step()
        assert some.serving() >= target - (limits[0] == 0)
        assert some.table.count(Role.NEXT) <= 1
    assert len(some.boots) == 2 * target
    assert some.is_quiet()


def test_a_reload_ends_while_new_workers_want_to_be_recycled_all_the_time() -> None:
    some = cluster(target=4)
    some.reload()
    while some.is_active:
        for process in some.table:
            if process.ready_at is not None and process.version == some.replacer.version:
                some.lifecycle.recycle(process, RECYCLED, some.now)
        some.step()
        assert some.serving() == 4
        assert some.now < 1_000 + 30


def test_fewer_workers_are_not_the_ones_that_are_down() -> None:
    """TTOU while the lower slots are on their way takes the last one that serves not away."""
    some = cluster(target=2)
    some.fates.extend([FAILURES["exits"]] * 4)
    some.end(some.workers[0], SEGFAULT)
    some.want(1)
    while some.table.current(1):
        some.step()
        assert any(each.serves for each in some.table)
    assert len(some.slots()) == 1
    some.settle()


def test_it_is_settled_when_nothing_is_under_way() -> None:
    some = Cluster()
    assert not some.lifecycle.is_settled(3)
    some.started()
    assert some.lifecycle.is_settled(3)
    assert not some.lifecycle.is_settled(2)
    some.reload()
    assert not some.lifecycle.is_settled(3)
    some.settle()
    assert some.lifecycle.is_settled(3)
    some.lifecycle.recycle(some.workers[4].process, RECYCLED, some.now)
    some.turn()
    assert not some.lifecycle.is_settled(3)
