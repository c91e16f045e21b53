"""Polling Socket.IO clients in Python: no cookies, and every request on any connection."""

import pytest

from tests.harness.clients.callers import Caller, run_callers
from tests.harness.programs import StartGunicorn

pytestmark = pytest.mark.one_gunicorn

CLIENTS = 24
CALLS = 10


def served(callers: list[Caller]) -> list[Caller]:
    """Those that got all their answers, and from one worker."""
    return [
        caller
        for caller in callers
        if caller.error is None and caller.answers == CALLS and len(set(caller.pids)) == 1
    ]


def test_every_client_gets_all_answers_from_its_worker(gunicorn: StartGunicorn) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    callers = run_callers(server.url, CLIENTS, CALLS, ["polling"])
    assert [caller.error for caller in callers if caller.error] == []
    assert len(served(callers)) == CLIENTS
    used = {worker for caller in callers for worker in caller.workers}
    assert used <= {0, 1, 2, 3}
    assert len(used) >= 3


def test_stock_gthread_cannot(gunicorn: StartGunicorn) -> None:
    """Without this, the test above could pass because there is nothing to show."""
    stock = ("-k", "gthread", "-w", "4", "--threads", "100", "--graceful-timeout", "1")
    server = gunicorn("chat_short_poll:app", *stock, serving=4)
    callers = run_callers(server.url, CLIENTS, CALLS, ["polling"], patience=3)
    assert len(served(callers)) < CLIENTS
