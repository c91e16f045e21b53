"""Coroutines that run without an event loop."""

import asyncio

import pytest

from gunicorn_cluster_ext.stores.sync_async import blocking_sleep, run


async def double(number: int) -> int:
    await blocking_sleep(0)
    if number < 0:
        raise ValueError("negative")
    return 2 * number


def test_results_and_errors_are_those_of_the_coroutine() -> None:
    assert run(double(21)) == 42
    with pytest.raises(ValueError, match="negative"):
        run(double(-1))


def test_a_coroutine_that_suspends_is_closed() -> None:
    closed = []

    async def suspends() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="suspends"):
        run(suspends())
    assert closed == [True]


def test_it_runs_within_an_event_loop_too() -> None:
    async def loop() -> int:
        return run(double(1)) + await double(2)

    assert asyncio.run(loop()) == 6
