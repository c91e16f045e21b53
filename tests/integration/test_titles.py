"""What ps shows of a server."""

import signal

import psutil
import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.deploy import slow
from tests.harness.servers.site import READY_MADE, Site, StartSite
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until
from tests.harness.watcher import Watcher

pytestmark = pytest.mark.one_gunicorn


def title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline()).strip()


class Watch(Watcher):
    """Notes every title that it sees, of a server and of all its workers, in order."""

    def __init__(self, site: Site) -> None:
        self._master = site.server.master_pid
        self.of_master: list[str] = []
        self.of_workers: set[str] = set()

    def look(self) -> None:
        seen = title(self._master)
        if seen not in self.of_master[-1:]:
            self.of_master.append(seen)
        for worker in psutil.Process(self._master).children():
            try:
                self.of_workers.add(title(worker.pid))
            except psutil.NoSuchProcess:
                continue


def test_who_they_are(gunicorn: StartGunicorn) -> None:
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "3", "--name", "my shop")
    for slot, pid in View(server).wait_slots(3).items():
        assert title(pid) == f"gunicorn: worker {slot} [my shop]"
    assert title(server.master_pid) == "gunicorn: master [my shop]"


def test_what_they_do_in_a_roll(site: StartSite) -> None:
    titled = site(
        proc_name="shop", workers=2, cluster_roll_rollback="full", cluster_roll_observe=0.5
    )
    titled.deploy(slow(0.5))
    with titled.server.connect() as lingering, Watch(titled) as watch:
        lingering.send(request_bytes("GET", "/?sleep=4"))
        titled.roll()
        # A parked process whose last request goes on drains.
        wait_until(
            lambda: {each.split("] ")[-1] for each in watch.of_workers} >= {"draining"},
            PATIENCE_S,
            "a worker that drains",
        )
        assert lingering.answer().status == 200
    assert watch.of_master == [
        "gunicorn: master [shop]",
        "gunicorn: master [shop] rolling 0/2",
        "gunicorn: master [shop] rolling 1/2",
        "gunicorn: master [shop] observing",
        "gunicorn: master [shop]",
    ]
    for slot in (0, 1):
        for doing in ("", " booting", " parked"):
            assert f"gunicorn: worker {slot} [shop]{doing}" in watch.of_workers
    for slot, pid in titled.view.wait_slots(2, generation=2).items():
        assert title(pid) == f"gunicorn: worker {slot} [shop]"


def test_a_roll_that_fails_leaves_the_usual_titles(site: StartSite) -> None:
    titled = site(proc_name="shop", workers=2)
    titled.deploy("raise RuntimeError\n")
    titled.roll(RollState.FAILED)
    titled.view.wait_slots(2, generation=1)
    assert title(titled.server.master_pid) == "gunicorn: master [shop]"


def test_a_title_that_the_application_has_chosen_stays(site: StartSite) -> None:
    hooks = """
import setproctitle

def post_fork(server, worker):
    setproctitle.setproctitle(f"shop {worker.pid}")
"""
    titled = site(hooks=hooks, workers=2)
    assert [title(pid) for pid in titled.pids.values()] == [
        f"shop {pid}" for pid in titled.pids.values()
    ]


@pytest.mark.parametrize(
    ("kind", "app"), [("StickyASGI", "lifespan:app"), ("StickyGevent", "whoami:app")]
)
def test_an_event_loops_worker(site: StartSite, kind: str, app: str) -> None:
    worker_class = f"gunicorn_cluster_ext.{kind}"
    # Long enough to be seen.
    hooks = "import time\n\ndef post_fork(server, worker):\n    time.sleep(0.3)\n"
    titled = site(app, hooks=hooks, worker_class=worker_class, proc_name="shop", workers=2)
    assert [title(pid) for pid in titled.pids.values()] == [
        "gunicorn: worker 0 [shop]",
        "gunicorn: worker 1 [shop]",
    ]
    with Watch(titled) as watch:
        titled.roll()
        titled.view.wait_slots(2, generation=2)
    assert "gunicorn: worker 0 [shop] booting" in watch.of_workers


@pytest.mark.parametrize("kind", ["sync", "gthread", "asgi"])
def test_gunicorns_own_workers(gunicorn: StartGunicorn, kind: str) -> None:
    config = f"{READY_MADE}worker_class = {kind!r}\nworkers = 2\nproc_name = 'shop'\n"
    app = "lifespan:app" if kind == "asgi" else "worker_names:app"
    server = gunicorn(app, config=config, wait=False)
    for slot, pid in View(server).wait_slots(2).items():
        assert title(pid) == f"gunicorn: worker {slot} [shop]"
    server.signal(signal.SIGTERM)
    server.wait_exit(PATIENCE_S)
