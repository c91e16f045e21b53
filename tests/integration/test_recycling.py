"""Workers that have had their time are replaced one at a time, and the replacement comes first."""

import psutil
import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.clients.load import NOTICED_S
from tests.harness.servers.site import Site, StartSite, failures, for_each
from tests.harness.view import KINDS, PATIENCE_S, Watch, name_of
from tests.harness.waiting import wait_until

MEGABYTE = 1_000_000


def wait_generations(recycled: Site, generation: int) -> None:
    for slot in recycled.pids:
        recycled.view.wait_generation(slot, generation)


@pytest.mark.parametrize("kind", [*KINDS, "gthread", "sync"], ids=name_of)
def test_max_requests(site: StartSite, kind: str) -> None:
    recycled = site(worker_class=kind, workers=4, max_requests=20, max_requests_jitter=5)
    load = recycled.load(connections=12, pause=0.05, request=for_each(4))
    with load, Watch(recycled.view) as watch:
        wait_generations(recycled, 3)
        wait_until(
            lambda: all(load.report.workers[slot] >= 200 for slot in range(4)),
            2 * PATIENCE_S,
            "200 requests per worker",
        )
    assert set(load.report.statuses) == {200}
    assert failures(load.report, kind) == []
    if kind in KINDS:
        assert load.report.complaints(NOTICED_S) == []
        assert load.report.connections == 12
    assert watch.fewest_serving == 4
    assert watch.most_active <= 5


@pytest.mark.one_gunicorn
def test_max_lifetime(site: StartSite) -> None:
    recycled = site(cluster_max_lifetime=2)
    with recycled.load() as load, Watch(recycled.view) as watch:
        wait_generations(recycled, 3)
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3
    assert watch.most_active <= 4


# --- memory ---------------------------------------------------------------------------------------


def limit(recycled: Site, name: str) -> None:
    """Allow the workers somewhat more than they have now."""
    used = max(psutil.Process(pid).memory_info().rss for pid in recycled.pids.values())
    recycled.configure(**{name: used + 20 * MEGABYTE})
    recycled.roll()
    recycled.pids = recycled.view.wait_slots(len(recycled.pids), generation=2)


@pytest.mark.one_gunicorn
def test_max_memory(site: StartSite) -> None:
    """A megabyte leaks with every request."""
    recycled = site("leaky:app", workers=2)
    limit(recycled, "cluster_max_memory")
    load = recycled.load(connections=4, pause=0.2, request=for_each(2))
    with load, Watch(recycled.view) as watch:
        wait_generations(recycled, 3)
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 2
    assert watch.most_active <= 3
    reason = "cluster_max_memory: it uses"
    wait_until(lambda: recycled.lines(reason), PATIENCE_S, "the reason in the log")


@pytest.mark.one_gunicorn
def test_max_memory_hard(site: StartSite) -> None:
    recycled = site("leaky:app", workers=2)
    limit(recycled, "cluster_max_memory_hard")
    with recycled.server.connect() as connection:
        for _ in range(60):
            connection.send(request_bytes("GET", "/", {"Cookie": "gunicorn_worker=1"}))
            assert connection.answer().json()["pid"] == recycled.pids[1]
        recycled.view.wait_generation(1, 3)
    assert recycled.view.wait_slots(2)[0] == recycled.pids[0]
    assert [line for line in recycled.lines("cluster_max_memory_hard") if "orker 1" in line]
