"""Requests of nobody go to who has least to do."""

from tests.conftest import StartGunicorn
from tests.harness.connection import request_bytes
from tests.harness.waiting import wait_until
from tests.integration.view import PATIENCE_S, STICKY, View

COOKIE = "gunicorn_worker"


def test_a_request_of_nobody_does_not_wait_for_a_busy_worker(gunicorn: StartGunicorn) -> None:
    """On gthread it waits, while its siblings idle."""
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "4", "--threads", "1")
    view = View(server)
    view.wait_slots(4)
    with server.connect(timeout=60) as slow, server.connect(timeout=60) as other:
        for connection in (slow, other):  # both are with worker 1 now
            assert connection.get("/", cookie=f"{COOKIE}=1").json()["worker"] == 1
        slow.send(request_bytes("GET", "/?sleep=5", {"Cookie": f"{COOKIE}=1"}))
        wait_until(lambda: view.slots()[1].words["busy"] == 1, PATIENCE_S, "a busy worker 1")
        assert other.get("/").json()["worker"] != 1
        assert len({server.get("/").json()["worker"] for _ in range(20)} & {1}) == 0
        assert view.slots()[1].words["busy"] == 1, "too late to tell"
        assert slow.answer().json()["worker"] == 1
