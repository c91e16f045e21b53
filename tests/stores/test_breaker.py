from gunicorn_cluster_ext.stores.circuit_breaker import Breaker


def broken() -> Breaker:
    """Return a breaker that three failures have opened, at 10 s."""
    breaker = Breaker(failures=3, pause_s=0.5, probe_timeout_s=5)
    for _ in range(3):
        assert breaker.admits(10)
        breaker.failed(10)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(failures=3)
    for _ in range(10):
        breaker.failed(1)
        breaker.failed(1)
        breaker.succeeded()
    assert breaker.is_closed
    assert not broken().is_closed


def test_open_it_admits_nobody_for_a_while() -> None:
    breaker = broken()
    assert not breaker.admits(10)
    assert not breaker.admits(10.49)
    assert breaker.admits(10.5)


def test_one_probes_and_the_others_wait_for_it() -> None:
    breaker = broken()
    assert [breaker.admits(11) for _ in range(5)] == [True, False, False, False, False]
    assert not breaker.is_closed


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = broken()
    assert breaker.admits(11)
    breaker.succeeded()
    assert breaker.is_closed
    assert all(breaker.admits(11) for _ in range(5))


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = broken()
    assert breaker.admits(11)
    breaker.failed(11.2)
    assert not breaker.admits(11.6)
    assert breaker.admits(11.7)


def test_after_a_probe_that_was_lost_another_one() -> None:
    breaker = broken()
    assert breaker.admits(11)
    assert not breaker.admits(15.9)
    assert breaker.admits(16)


def test_closed_again_it_takes_as_many_failures_as_before() -> None:
    breaker = broken()
    assert breaker.admits(11)
    breaker.succeeded()
    breaker.failed(12)
    breaker.failed(12)
    assert breaker.admits(12)
    breaker.failed(12)
    assert not breaker.admits(12)
