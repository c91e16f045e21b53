"""StickyGevent: what is its own. The rest is tested with every worker class."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import StartGunicorn
from tests.integration.view import GEVENT, View


def test_requests_that_wait_cost_no_thread(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", GEVENT, "-w", "1", wait=False)
    View(server).wait_slots(1)
    with ThreadPoolExecutor(60) as crowd:
        begun = time.monotonic()
        answers = list(crowd.map(lambda _: server.get("/?sleep=3").status, range(60)))
        assert time.monotonic() - begun < 30
    assert answers == [200] * 60
    assert "threads per worker" not in server.log_text()
