import dataclasses
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.supervisor.backoff import JITTER, RestartLimits, RestartPolicy

POLICY = RestartPolicy.of(Settings())


def limits(draw: float = 0.5, **changes: float | bool) -> RestartLimits:
    """With ``draw`` 0.5 delays do not vary."""
    return RestartLimits(dataclasses.replace(POLICY, **changes), lambda: draw)  # type: ignore[arg-type]


# --- the backoff of a slot ----------------------------------------------------------------------


def test_each_failure_doubles_the_delay_until_the_longest() -> None:
    some = limits(limit=0)
    delays = [some.note_failure(0, None, now) for now in range(11)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])


def test_a_slot_has_no_process_before_its_delay_is_over() -> None:
    some = limits()
    assert some.not_before(0) == 0.0
    some.note_failure(0, 1.0, 50.0)
    assert some.not_before(0) == pytest.approx(50.1)
    assert some.not_before(1) == 0.0, "each slot has its own"


def test_slots_do_not_share_a_delay() -> None:
    some = limits()
    assert [some.note_failure(slot, None, 0.0) for slot in (0, 0, 1, 0)] == pytest.approx(
        [0.1, 0.2, 0.1, 0.4]
    )


@pytest.mark.parametrize(
    ("served", "delay"), [(None, 0.8), (0.0, 0.8), (9.99, 0.8), (10.0, 0.0), (86_400.0, 0.0)]
)
def test_a_process_that_served_long_is_replaced_at_once(served: float | None, delay: float) -> None:
    some = limits()
    for now in (1.0, 2.0, 3.0):
        some.note_failure(0, None, now)
    assert some.note_failure(0, served, 100.0) == pytest.approx(delay)
    assert some.not_before(0) == pytest.approx(100.0 + delay)


def test_a_long_service_resets_the_delay() -> None:
    some = limits()
    for now in range(5):
        some.note_failure(0, None, now)
    some.note_failure(0, 10.0, 100.0)
    assert [some.note_failure(0, None, 101.0 + now) for now in range(3)] == pytest.approx(
        [0.1, 0.2, 0.4]
    )


@pytest.mark.parametrize(
    ("served", "delay"), [(None, 0.4), (9.0, 0.4), (10.0, 0.1), (47.0, 0.1), (49.0, 0.4)]
)
def test_an_expected_exit_after_a_long_service_resets_the_delay(
    served: float | None, delay: float
) -> None:
    """It does not if the process is an old predecessor of those that failed."""
    some = limits()
    some.note_failure(0, None, 1.0)
    some.note_failure(0, None, 2.0)
    some.note_finished(0, served, 50.0)
    some.note_finished(1, served, 50.0)
    assert some.note_failure(0, None, 51.0) == pytest.approx(delay)


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 3_600))
def test_delays_vary_by_a_fifth_at_most(failures: int, draw: float, delay: float) -> None:
    some = limits(draw, delay=delay, limit=0)
    for _ in range(failures):
        some.note_failure(0, None, 0.0)
    got, nominal = some.note_failure(0, None, 0.0), delay * 2.0 ** min(failures, 60)
    assert min(30.0, nominal * (1 - JITTER)) - 1e-9 <= got <= min(30.0, nominal * (1 + JITTER))


def test_delays_are_drawn_at_random() -> None:
    assert limits(0.0).note_failure(0, None, 0.0) == pytest.approx(0.08)
    assert limits(0.999_999).note_failure(0, None, 0.0) == pytest.approx(0.12)


def test_a_delay_of_zero_never_grows() -> None:
    some = limits(delay=0.0)
    assert [some.note_failure(0, None, now) for now in range(20)] == [0.0] * 20


# --- the budget of the server -------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 30), max_size=60).map(lambda gaps: list(itertools.accumulate(gaps))),
    st.integers(1, 10),
    st.sampled_from([1.0, 7.5, 60.0]),
    st.floats(0, 90),
)
def test_the_window_slides(exits: list[float], limit: int, window: float, later: float) -> None:
    """Exits count that are more recent than the window, wherever it began."""
    some = limits(limit=limit, window=window)
    for index, now in enumerate(exits):
        some.note_failure(index % 3, None, now)
        recent = [each for each in exits[: index + 1] if each > now - window]
        assert some.recent_exits(now) == len(recent)
        assert some.is_spent(now) is (len(recent) > limit)
    now = (exits[-1] if exits else 0.0) + later
    assert some.recent_exits(now) == sum(each > now - window for each in exits)


def test_the_limit_itself_is_allowed() -> None:
    some = limits(limit=3, window=10.0)
    for now in (1.0, 2.0, 3.0):
        some.note_failure(0, 99.0, now)
    assert not some.is_spent(3.0)
    some.note_failure(0, 99.0, 4.0)
    assert some.is_spent(10.9)
    assert not some.is_spent(11.0)


def test_a_burst_counts_as_one_wherever_it_falls() -> None:
    """A counter that is reset periodically would split it."""
    some = limits(limit=9, window=10.0)
    for now in [9.8] * 5 + [10.2] * 5:
        some.note_failure(0, None, now)
    assert some.is_spent(10.2)


def test_a_spent_budget_gives_each_slot_the_longest_delay() -> None:
    some = limits(limit=2)
    assert [some.note_failure(slot, None, 0.0) for slot in range(4)] == pytest.approx(
        [0.1, 0.1, 30, 30]
    )
    assert some.note_failure(0, None, 60.0) == pytest.approx(0.2), "until the window has moved on"


def test_without_a_limit_the_budget_is_never_spent() -> None:
    some = limits(limit=0, window=0.0)
    for now in range(1_000):
        some.note_failure(0, None, now)
    assert not some.is_spent(1_000.0)
    assert some.recent_exits(1_000.0) == len(some._exits) == 0


def test_a_reset_forgets_every_failure() -> None:
    some = limits(limit=2)
    for _ in range(9):
        some.note_failure(0, None, 1.0)
    some.reset()
    assert (some.not_before(0), some.recent_exits(1.0), some.is_spent(1.0)) == (0.0, 0, False)
    assert some.note_failure(0, None, 1.0) == pytest.approx(0.1)


# --- halting -------------------------------------------------------------------------------------


def fail_each(some: RestartLimits, slots: Iterable[int], times: int, now: float = 0.0) -> None:
    for _ in range(times):
        for slot in slots:
            some.note_failure(slot, None, now)


def test_a_spent_budget_halts() -> None:
    some = limits(limit=3, halt=True)
    fail_each(some, [0], 3)
    assert some.halt_reason(4, 1.0) == ""
    fail_each(some, [0], 1)
    assert some.halt_reason(4, 1.0) == "4 workers ended unexpectedly within 60 s"


def test_a_server_whose_slots_all_wait_the_longest_delay_halts() -> None:
    """Their delays alone would keep them below the budget forever."""
    some = limits(limit=1_000, halt=True)
    fail_each(some, [0, 1, 2], 10)
    assert some.halt_reason(3, 29.0) == "every worker keeps failing"
    assert some.halt_reason(3, 30.0) == "", "the delays are over"


@pytest.mark.parametrize("slots", [0, 4])
def test_one_slot_that_does_not_fail_prevents_a_halt(slots: int) -> None:
    some = limits(limit=1_000, halt=True)
    fail_each(some, [0, 1, 2], 10)
    assert some.halt_reason(slots, 1.0) == ""


def test_slots_above_the_target_do_not_count() -> None:
    some = limits(limit=1_000, halt=True)
    fail_each(some, [0], 10)
    assert some.halt_reason(1, 1.0) != ""
    fail_each(some, [2], 10)
    assert some.halt_reason(2, 1.0) == ""


def test_a_delay_that_can_still_grow_does_not_halt() -> None:
    some = limits(limit=1_000, halt=True)
    fail_each(some, [0], 9)
    assert some.halt_reason(1, 1.0) == ""


@pytest.mark.parametrize("changes", [{"halt": False}, {"limit": 0}])
def test_the_policy_says_whether_to_halt(changes: dict[str, float]) -> None:
    some = limits(**({"limit": 3, "halt": True} | changes))
    fail_each(some, [0, 1], 50)
    assert some.halt_reason(2, 1.0) == ""
