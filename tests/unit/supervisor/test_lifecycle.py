"""A model of a whole server, which carries out what the life cycle decides, over time."""

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
from gunicorn_cluster_ext.settings import Settings
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
RESTARTS = RestartPolicy.of(Settings(restart_delay_max=3.0))
POLICY = RollPolicy.of(Settings(startup_timeout=4.0, drain_timeout=3.0), None, 3, probing=False)
RECYCLED = "max_requests"
SEGFAULT = Exit(None, signal.SIGSEGV)


@dataclass(frozen=True)
class Fate:
    """What a process will do. Times are in seconds."""

    boot: float = 0.5  # until it is ready,
    fails: Exit | None = None  # or exits like this,
    hangs: bool = False  # or does neither
    lives: float | None = None  # from ready until it crashes
    drain: float = 0.5
    refuses: bool = False  # exits only when it is killed
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
    """A process as it really is. ``exits_at``: when it exits after it was asked to, if it does."""

    process: Process
    fate: Fate
    forked: float
    order: State = State.READY
    exits_at: float | None = None
    exit: Exit = field(default=Exit(0, None))

    def ends(self, now: float) -> Exit | None:
        fate, process = self.fate, self.process
        if self.exits_at is not None and now >= self.exits_at:
            return self.exit
        if process.ready_at is None and fate.fails and now >= self.forked + fate.boot:
            return fate.fails
        is_out = process.ready_at is not None and fate.lives is not None
        if is_out and now >= (process.ready_at or 0.0) + (fate.lives or 0.0):
            return SEGFAULT
        return None

    def becomes(self, now: float) -> State | None:
        """Return the state that it publishes now, if it is a new one."""
        fate, state = self.fate, self.process.state
        if state is State.BOOTING:
            boots = not (fate.fails or fate.hangs) and now >= self.forked + fate.boot
            return State.READY if boots and self.exits_at is None else None
        if self.exits_at is not None and state is not State.DRAINING and not fate.refuses:
            return State.DRAINING
        return self.order if state in (State.READY, State.PARKED) and state != self.order else None


class ModelServer:
    """Carries out actions, and checks that no action lowers the number of serving workers."""

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
        self.gaps: set[int] = set()  # emptied for recycling and not filled yet

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
        assert self.good() >= min(good, floor), "it relied on processes that may be unhealthy"

    # --- decisions -----------------------------------------------------------------------------

    def call(self, function: Callable[..., list[Action]], *args: object) -> None:
        """Call ``function``, which must not retire what is needed, and execute its actions."""
        before = self.serving()
        actions = function(*args)
        floor = self.policy.target - self.policy.unavailable
        assert self.serving() >= min(before, floor), actions
        self.execute(actions)

    def serving(self) -> int:
        """Return the number of slots whose CURRENT process serves."""
        return sum(each.role is Role.CURRENT and each.serves for each in self.table)

    def good(self) -> int:
        """Return how many of these are also known to be healthy, or older than the roll."""
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
                    self.workers[process.key].exits_at = None
                    self.leave(self.workers[process.key], Exit(None, signal.SIGABRT))
                case Park(process):
                    assert process.can_park and self.policy.full
                    self.workers[process.key].order = State.PARKED
                case Resume(process):
                    self.workers[process.key].order = State.READY

    def leave(self, worker: Worker, exit: Exit) -> None:
        if worker.exits_at is None and not worker.fate.refuses:
            drain = worker.fate.drain if worker.process.ready_at else 0.1
            worker.exits_at, worker.exit = self.now + drain, exit

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
        """Return to the previous target if the roll was undone, as the arbiter does."""
        assert ended.roll is self.replacer.roll
        assert ended.roll.state in (RollState.COMMITTED, RollState.FAILED)
        assert bool(ended.roll.reason) is (ended.roll.state is RollState.FAILED)
        assert not any(each.roll is ended.roll for each in self.rolls)
        self.rolls.append(ended)
        if ended.undone:
            self.want(ended.roll.before)

    # --- operators ------------------------------------------------------------------------------

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
        """Send SIGTERM, as an operator does. A process that has no handler yet dies of it."""
        if worker.process.ready_at is None:
            self.end(worker, Exit(None, signal.SIGTERM))
        else:
            self.leave(worker, Exit(0, None))

    # --- invariants -----------------------------------------------------------------------------

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
        """Return whether every slot is served and nothing is under way."""
        current = [self.table.current(slot) for slot in range(self.policy.target)]
        return (
            all(each is not None and each.serves and not each.replace_reason for each in current)
            and {each.role for each in self.table} <= {Role.CURRENT}
            and len(self.workers) == self.policy.target
            and not self.is_active
            and self.lifecycle.is_settled(self.policy.target)
        )

    def finish(self) -> None:
        """Run until the roll has ended."""
        self.run_until(lambda: not self.is_active, 90.0)

    def settle(self, limit: float = 90.0) -> None:
        """Run until all is quiet; from now on no process fails."""
        self.fates.clear()
        for worker in self.workers.values():
            worker.fate = dataclasses.replace(worker.fate, lives=None, sick=False)
        self.run_until(lambda: not self.is_active, limit)
        self.run_until(self.is_quiet, limit)

    def started(self) -> "ModelServer":
        self.turn()
        self.run_until(self.is_quiet, 9.0)
        return self

    def slots(self) -> list[int]:
        """Return the key of the process that serves in each slot."""
        found = [self.table.current(slot) for slot in range(self.policy.target)]
        return [each.key for each in found if each is not None and each.serves]


def three_workers(**policy: object) -> ModelServer:
    """Return a server whose three workers serve. Their keys are 0 to 2."""
    return ModelServer(dataclasses.replace(POLICY, **policy)).started()  # type: ignore[arg-type]


# --- random histories ---------------------------------------------------------------------------

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
    """Reloads, crashes, hangs and signals in any order. In the end all must be quiet."""

    @initialize(policy=policies, seed=st.integers(0, 9))
    def start(self, policy: RollPolicy, seed: int) -> None:
        self.server = ModelServer(policy, seed=seed)
        self.server.turn()

    def pick(self, index: int, *states: State) -> Worker | None:
        found = [each for each in self.server.workers.values() if each.process.state in states]
        return found[index % len(found)] if found else None

    @rule(seconds=st.sampled_from([TICK, 1.0, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.server.run(seconds)

    @rule(some=st.lists(fates, min_size=1, max_size=3))
    def fate(self, some: list[Fate]) -> None:
        """Choose what the next processes will do."""
        self.server.fates.extend(some)

    @rule(policy=policies, same=st.booleans())
    def reload(self, policy: RollPolicy, same: bool) -> None:
        self.server.reload(None if same else policy)
        self.server.turn()

    @rule(index=st.integers(0, 9))
    def crash(self, index: int) -> None:
        if worker := self.pick(index, *State):
            self.server.end(worker, Exit(None, signal.SIGKILL))

    @rule(index=st.integers(0, 9))
    def hang(self, index: int) -> None:
        """Abort it, as gunicorn's timeout does; it may publish READY for a while."""
        if worker := self.pick(index, State.READY, State.PARKED):
            lifecycle, now = self.server.lifecycle, self.server.now
            self.server.execute(lifecycle.abort(worker.process, "did not answer", now))

    @rule(index=st.integers(0, 9))
    def eat(self, index: int) -> None:
        """Kill it, as cluster_max_memory_hard does."""
        if worker := self.pick(index, State.READY):
            lifecycle, now = self.server.lifecycle, self.server.now
            self.server.execute(lifecycle.kill(worker.process, "ate too much", now))

    @rule(index=st.integers(0, 9))
    def terminate(self, index: int) -> None:
        if worker := self.pick(index, State.BOOTING, State.READY, State.PARKED):
            self.server.terminate(worker)

    @rule(index=st.integers(0, 9), all_of_them=st.booleans())
    def recycle(self, index: int, all_of_them: bool) -> None:
        found = [self.pick(index, State.READY)]
        for worker in self.server.workers.values() if all_of_them else found:
            if worker and worker.process.ready_at is not None:
                self.server.lifecycle.recycle(worker.process, RECYCLED, self.server.now)

    @rule(index=st.integers(0, 9))
    def sicken(self, index: int) -> None:
        if worker := self.pick(index, State.READY):
            worker.fate = dataclasses.replace(worker.fate, sick=True)

    @rule()
    def ttin(self) -> None:
        self.server.want(min(self.server.policy.target + 1, CAPACITY))

    @rule()
    def ttou(self) -> None:
        self.server.want(max(self.server.policy.target - 1, 1))

    @rule()
    def settle(self) -> None:
        self.server.settle()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.server.check()

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.settle()


AnyHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestAnyHistory = AnyHistory.TestCase


# --- reloads ------------------------------------------------------------------------------------


@given(policies, st.randoms(use_true_random=False))
def test_a_reload_of_good_code_replaces_every_worker_without_a_gap(
    policy: RollPolicy, random: random.Random
) -> None:
    server = ModelServer(policy).started()
    server.fates.extend(Fate(boot=random.uniform(0, 3), drain=random.uniform(0, 3)) for _ in "abcd")
    server.reload()
    while server.is_active:
        server.step()
        assert server.serving() >= policy.target - policy.unavailable
        assert server.now < 1_000 + 60
    server.settle()
    assert server.rolls[-1].roll.state is RollState.COMMITTED
    assert len(server.boots) == 2 * policy.target
    assert {each.version for each in server.table} == {server.replacer.version}


@given(policies, st.sampled_from(sorted(FAILURES)), st.integers(0, 3))
def test_a_reload_of_bad_code_leaves_a_server_that_serves(
    policy: RollPolicy, failure: str, good: int
) -> None:
    """``full`` undoes everything; otherwise the slots that were replaced or emptied stay new."""
    server = ModelServer(policy).started()
    before = server.slots()
    server.fates.extend([GOOD] * (good % policy.target) + [FAILURES[failure]])
    server.reload()
    while server.is_active:
        server.step()
        assert server.serving() >= policy.target - policy.unavailable
    kept = {each.key for each in server.table if each.version == 0 and each.retired_at is None}
    if (policy.surge, policy.unavailable) == (1, 0):
        assert len(kept) == policy.target - (0 if policy.full else good % policy.target)
    server.settle()
    assert server.rolls[-1].roll.state is RollState.FAILED
    assert kept <= set(server.slots())
    if policy.full:
        assert server.slots() == before
        assert server.rolls[-1].undone


@pytest.mark.parametrize("failure", sorted(FAILURES))
@pytest.mark.parametrize("full", [False, True])
def test_the_third_of_four_new_workers_fails(failure: str, full: bool) -> None:
    server = three_workers(target=4, full=full)
    server.fates.extend([GOOD, GOOD, FAILURES[failure]])
    server.reload()
    while server.is_active:
        server.step()
        assert server.serving() == 4
    server.settle()
    assert server.slots() == ([0, 1, 2, 3] if full else [4, 5, 2, 3])
    assert server.rolls[-1].undone is full
    assert server.rolls[-1].roll.reason.startswith("worker 2 ")
    assert server.rolls[-1].roll.replaced == 2


def test_an_unhealthy_new_worker_fails_the_reload() -> None:
    server = three_workers(probing=True)
    server.fates.append(Fate(sick=True))
    server.reload()
    server.finish()
    server.settle()
    assert server.slots() == [0, 1, 2]
    assert server.rolls[-1].roll.reason == "worker 0 is not healthy"
    assert server.rolls[-1].undone


@pytest.mark.parametrize("full", [False, True])
def test_a_crash_during_the_observation_fails_the_reload(full: bool) -> None:
    server = three_workers(observe=5.0, full=full)
    server.fates.extend([GOOD, GOOD, Fate(lives=2.0)])
    server.reload()
    server.finish()
    server.settle()
    assert server.rolls[-1].roll.state is RollState.FAILED
    assert "worker 2 was ended by SIGSEGV after serving" in server.rolls[-1].roll.reason
    assert server.slots() == ([0, 1, 2] if full else [3, 4, 6])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.5, 0.75, 1.0, 1.25])
def test_a_second_reload_replaces_the_first(full: bool, after: float) -> None:
    server = three_workers(full=full)
    server.reload()
    server.run(after)
    server.reload()
    while server.is_active:
        server.step()
        assert server.serving() == 3
    server.settle()
    assert [each.roll.state for each in server.rolls] == [RollState.FAILED, RollState.COMMITTED]
    assert {each.version for each in server.table} == {2}


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
@pytest.mark.parametrize("failure", [None, "exits"])
def test_a_reload_changes_the_number_of_workers(
    before: int, after: int, failure: str | None
) -> None:
    """A reload that fails undoes that as well."""
    server = three_workers(target=before)
    server.fates.extend([FAILURES[failure]] if failure else [])
    server.reload(dataclasses.replace(server.policy, target=after))
    server.finish()
    server.settle()
    assert len(server.slots()) == (before if failure else after)
    if failure:
        assert server.slots()[:2] == [0, 1]


# --- crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [0.0, 0.1, 0.4])
@given(seed=st.integers(0, 1_000))
@settings(max_examples=20)
def test_three_workers_that_keep_crashing_are_not_booted_endlessly(boot: float, seed: int) -> None:
    """Stock gunicorn boots 98 within ten seconds. A fourth worker serves all the time."""
    restarts = dataclasses.replace(RESTARTS, delay_max=30.0)
    server = ModelServer(dataclasses.replace(POLICY, target=4), restarts, seed)
    server.fates.extend([GOOD] + [Fate(boot=boot, lives=0.3)] * 200)
    server.turn()
    server.run(10.0, tick=0.05)
    assert len(server.boots) - 1 <= 30
    assert server.table.current(0) and server.slots()[0] == 0


@pytest.mark.parametrize("boot", [0.0, 0.4])
@given(seed=st.integers(0, 1_000))
@settings(max_examples=20)
def test_workers_that_all_keep_crashing_are_not_booted_endlessly(boot: float, seed: int) -> None:
    restarts = dataclasses.replace(RESTARTS, delay_max=30.0)
    server = ModelServer(POLICY, restarts, seed)
    server.fates.extend([Fate(boot=boot, lives=0.3)] * 500)
    server.turn()
    server.run(10.0, tick=0.05)
    assert len(server.boots) <= 30
    server.run(50.0, tick=0.1)
    recent = [each for each in server.boots if each > server.now - 10]
    assert 3 <= len(recent) <= 11, "one is tried each second"


def test_the_first_crash_after_a_long_service_is_replaced_at_once() -> None:
    server = three_workers()
    server.run(10.0)
    server.end(server.workers[1], SEGFAULT)
    assert server.outcomes[-1].delay == 0.0
    server.turn()
    assert len(server.boots) == 4
    server.end(server.workers[3], SEGFAULT)
    assert 0.08 <= server.outcomes[-1].delay <= 0.12


def test_expected_exits_cost_no_delay() -> None:
    """These are recycling, TTOU, a reload and an operator's SIGTERM."""
    server = three_workers()
    server.lifecycle.recycle(server.workers[0].process, RECYCLED, server.now)
    server.run(5.0)
    server.terminate(server.workers[1])
    server.run(5.0)
    server.want(2)
    server.reload()
    server.settle()
    assert all(each.expected and not each.delay for each in server.outcomes)
    assert len(server.outcomes) == 5
    assert server.lifecycle.recent_exits(server.now) == 0


def test_a_worker_that_an_operator_terminates_is_replaced_while_it_finishes() -> None:
    server = three_workers()
    server.workers[1].fate = Fate(drain=3.0)
    server.terminate(server.workers[1])
    server.run(1.0)
    assert server.slots() == [0, 3, 2]
    assert 1 in server.workers


def test_a_long_service_with_an_expected_exit_resets_the_backoff() -> None:
    server = three_workers()
    for _ in range(4):
        process = server.table.current(1)
        assert process is not None
        server.end(server.workers[process.key], SEGFAULT)
        server.run(3.0)
    assert server.outcomes[-1].delay > 0.6
    server.run(10.0)
    server.lifecycle.recycle(server.workers[server.slots()[1]].process, RECYCLED, server.now)
    server.settle()
    server.end(server.workers[server.slots()[1]], SEGFAULT)
    assert server.outcomes[-1].delay <= 0.12


def test_unexpected_exits_count_towards_the_limit() -> None:
    server = three_workers()
    server.end(server.workers[0], Exit(None, signal.SIGKILL))
    server.execute(server.lifecycle.abort(server.workers[1].process, "did not answer", server.now))
    server.execute(server.lifecycle.kill(server.workers[2].process, "ate too much", server.now))
    server.fates.extend([FAILURES["does not load"], FAILURES["hangs"]])
    server.run(8.0)
    words = [each.words.split(" after")[0].split(" before")[0] for each in server.outcomes]
    assert words == [
        "was ended by SIGKILL",
        "ate too much",
        "did not answer",
        "could not load the application (exit code 4)",
        "did not become ready within 4 s (cluster_startup_timeout)",
    ]
    assert not any(each.expected for each in server.outcomes)
    assert server.lifecycle.recent_exits(server.now) == 5


@pytest.mark.parametrize(("code", "halt"), [(3, 3), (4, 4), (1, 0)])
def test_a_server_that_never_served_ends_with_the_exit_code_of_its_worker(
    code: int, halt: int
) -> None:
    server = ModelServer()
    server.turn()
    server.end(server.workers[0], Exit(code, None))
    assert server.outcomes[-1].halt == halt


def test_one_recycled_worker_that_cannot_boot_never_stops_the_server() -> None:
    server = three_workers()
    server.fates.extend([FAILURES["does not load"]] * 50)
    server.lifecycle.recycle(server.workers[1].process, RECYCLED, server.now)
    server.run(30.0)
    assert server.slots() == [0, 1, 2]
    assert {each.halt for each in server.outcomes} == {0}
    assert 10 <= len(server.outcomes) <= 20
    server.settle()
    assert set(server.slots()) > {0, 2}


def test_unknown_processes_have_no_outcome() -> None:
    assert Lifecycle(1, RESTARTS, random.random).exited(99, SEGFAULT, 0.0) is None


# --- hangs, health, recycling -------------------------------------------------------------------


def test_a_worker_that_does_not_boot_is_aborted_then_killed() -> None:
    server = ModelServer()
    server.fates.extend([Fate(hangs=True), Fate(hangs=True, refuses=True)])
    server.turn()
    server.run(4.0)
    assert len(server.outcomes) == 0
    server.run(0.75)
    assert len(server.outcomes) == 1
    server.run(2.0)
    assert len(server.outcomes) == 2
    server.settle()


def test_a_startup_timeout_of_zero_never_passes() -> None:
    server = ModelServer(dataclasses.replace(POLICY, startup=0.0))
    server.fates.append(Fate(boot=3_600.0))
    server.turn()
    server.run(3_700.0, tick=50.0)
    assert server.slots() == [0, 1, 2]


def test_a_process_is_aborted_once() -> None:
    server = three_workers()
    process = server.workers[0].process
    assert server.lifecycle.abort(process, "hangs", server.now) == [Abort(process, "hangs")]
    assert server.lifecycle.abort(process, "hangs", server.now) == []
    assert server.lifecycle.kill(process, "eats", server.now) == [Kill(process, "eats")]
    assert (process.kill_reason, process.killed) == ("hangs", True)


def test_an_unhealthy_worker_stays_until_its_successor_serves() -> None:
    server = three_workers(probing=True)
    server.workers[1].fate = Fate(sick=True)
    server.run(0.75)
    while not server.is_quiet():
        server.step()
        assert server.serving() == 3
    assert server.slots() == [0, 3, 2]


def test_unhealthy_successors_are_tried_ever_less_often() -> None:
    server = three_workers(probing=True)
    server.workers[1].fate = Fate(sick=True)
    server.fates.extend([Fate(sick=True)] * 99)
    server.run(60.0)
    assert server.slots() == [0, 1, 2]
    assert 3 + 60 / 6.0 <= len(server.boots) <= 3 + 60 / 3.0


@given(st.sampled_from([(1, 0), (0, 1), (3, 0), (0, 3), (2, 2)]), st.integers(1, 5))
def test_all_are_recycled_one_at_a_time(limits: tuple[int, int], target: int) -> None:
    server = three_workers(target=target, surge=limits[0], unavailable=limits[1])
    for worker in server.workers.values():
        server.lifecycle.recycle(worker.process, RECYCLED, server.now)
    for _ in range(400):
        server.step()
        assert server.serving() >= target - (limits[0] == 0)
        assert server.table.count(Role.NEXT) <= 1
    assert len(server.boots) == 2 * target
    assert server.is_quiet()


def test_a_reload_ends_while_new_workers_are_due_all_the_time() -> None:
    server = three_workers(target=4)
    server.reload()
    while server.is_active:
        for process in server.table:
            if process.ready_at is not None and process.version == server.replacer.version:
                server.lifecycle.recycle(process, RECYCLED, server.now)
        server.step()
        assert server.serving() == 4
        assert server.now < 1_000 + 30


def test_scaling_down_keeps_the_last_worker_that_serves() -> None:
    """TTOU retires the serving worker of a higher slot only when a lower slot serves."""
    server = three_workers(target=2)
    server.fates.extend([FAILURES["exits"]] * 4)
    server.end(server.workers[0], SEGFAULT)
    server.want(1)
    while server.table.current(1):
        server.step()
        assert any(each.serves for each in server.table)
    assert len(server.slots()) == 1
    server.settle()


def test_it_is_settled_when_nothing_is_under_way() -> None:
    server = ModelServer()
    assert not server.lifecycle.is_settled(3)
    server.started()
    assert server.lifecycle.is_settled(3)
    assert not server.lifecycle.is_settled(2)
    server.reload()
    assert not server.lifecycle.is_settled(3)
    server.settle()
    assert server.lifecycle.is_settled(3)
    server.lifecycle.recycle(server.workers[4].process, RECYCLED, server.now)
    server.turn()
    assert not server.lifecycle.is_settled(3)
