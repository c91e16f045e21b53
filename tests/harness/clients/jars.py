"""Cookie jars of browsers that already have a sticky cookie."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from tests.harness.clients.connection import Answer, Connection
from tests.harness.waiting import wait_until

COOKIE = "gunicorn_worker"

Connect = Callable[[], Connection]


def cookies_of_workers(connect: Connect, workers: int) -> dict[int, str]:
    """Return the sticky cookie of each worker, for at least so many workers.

    Which worker gets a new client is up to the server, so clients that keep
    their worker busy for a moment come in crowds until enough workers are known.
    """
    known: dict[int, str] = {}

    def ask(_: int) -> Answer:
        with connect() as connection:
            return connection.get("/?sleep=0.05", connection="close")

    def enough() -> bool:
        with ThreadPoolExecutor(16) as crowd:
            for answer in crowd.map(ask, range(16)):
                known[answer.json()["worker"]] = answer.cookies()[COOKIE]
        return len(known) >= workers

    wait_until(enough, 20, f"answers from {workers} workers")
    return known


def fill_jars(connect: Connect, count: int, workers: int) -> list[tuple[int, str]]:
    """Return (worker, Cookie header) of `count` clients, spread over at least `workers`."""
    known = sorted(cookies_of_workers(connect, workers).items())
    spread = islice(cycle(known), count)
    return [
        (worker, f"{COOKIE}={cookie}; jar={number}")
        for number, (worker, cookie) in enumerate(spread)
    ]
