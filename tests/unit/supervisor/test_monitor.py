from gunicorn_cluster_ext.supervisor.monitor import RATE_INTERVAL_S, Rates


def test_rates_are_per_second_since_the_last_count() -> None:
    rates = Rates()
    rates.count({1: 100, 2: 5}, 1000.0)
    assert not rates.is_due(1000.0 + RATE_INTERVAL_S / 2)
    assert rates.is_due(1000.0 + RATE_INTERVAL_S)
    assert rates.count({1: 150, 2: 5}, 1005.0) == {1: 10.0, 2: 0.0}
    assert rates.count({2: 25}, 1010.0) == {2: 4.0}


def test_a_new_process_counts_from_zero() -> None:
    rates = Rates()
    rates.count({}, 1000.0)
    assert rates.count({7: 30}, 1005.0) == {7: 6.0}
