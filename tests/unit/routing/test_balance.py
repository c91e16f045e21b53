import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.balance import Load, clearly_less_loaded, least_loaded


def load(busy: int, sessions: int = 0, threads: int = 4) -> Load:
    return Load(busy, sessions, threads)


def test_a_request_stays_while_a_thread_is_free() -> None:
    assert least_loaded({1: load(3), 3: load(0)}, 1, strictly=False) == 1


def test_a_request_leaves_a_busy_worker_for_the_least_loaded() -> None:
    assert least_loaded({1: load(4), 3: load(2), 5: load(1)}, 1, strictly=False) == 5


def test_a_request_stays_when_all_are_busy() -> None:
    assert least_loaded({1: load(9), 3: load(4)}, 1, strictly=False) == 1
    assert least_loaded({1: load(9), 3: load(4)}, 1, strictly=True) == 1


def test_a_session_starts_on_the_least_loaded_worker() -> None:
    assert least_loaded({1: load(1), 3: load(0)}, 1, strictly=True) == 3
    assert least_loaded({1: load(0), 3: load(0)}, 3, strictly=True) == 3


def test_sessions_break_a_tie() -> None:
    assert least_loaded({1: load(0, 3), 3: load(0, 2), 5: load(1, 0)}, 1, strictly=True) == 3


@pytest.mark.parametrize(
    ("mine", "other", "moves"),
    [
        (load(0), load(0), False),
        (load(1), load(0), False),
        (load(2), load(0), True),
        (load(3), load(2), False),
        (load(0, 1), load(0), False),
        (load(0, 2), load(0), True),
        (load(0, 113), load(0, 100), False),
        (load(0, 114), load(0, 100), True),
        (load(0, 9), load(1, 0), False),
        (load(2, 0), load(0, 9), True),
        (load(0, 0), load(0, 9), False),
    ],
)
def test_a_request_that_may_start_a_session_moves_for_a_clear_difference(
    mine: Load, other: Load, moves: bool
) -> None:
    assert clearly_less_loaded({1: mine, 3: other}, 1) == (3 if moves else 1)


def test_a_request_that_may_start_a_session_leaves_a_draining_worker() -> None:
    assert clearly_less_loaded({3: load(4)}, 1) == 3
    assert clearly_less_loaded({}, 1) == 1


def test_a_draining_worker_gives_every_request_away() -> None:
    assert least_loaded({3: load(1), 5: load(0)}, 1, strictly=False) == 5
    assert least_loaded({3: load(5), 5: load(4)}, 1, strictly=False) == 5


def test_the_only_worker_keeps_every_request() -> None:
    assert least_loaded({}, 1, strictly=False) == 1
    assert least_loaded({1: load(9)}, 1, strictly=True) == 1


@given(
    st.dictionaries(
        st.integers(0, 9),
        st.builds(Load, st.integers(0, 5), st.integers(0, 3), st.integers(1, 4)),
        max_size=5,
    ),
    st.integers(0, 9),
    st.booleans(),
)
def test_a_request_never_goes_from_a_free_worker_to_a_busy_one(
    loads: dict[int, Load], me: int, strictly: bool
) -> None:
    there = least_loaded(loads, me, strictly=strictly)
    assert there == me or there in loads
    if me in loads and there != me:
        assert loads[there].busy < loads[there].threads
        assert strictly or loads[me].busy >= loads[me].threads
