"""Metrics of real servers, as a Prometheus reads them."""

import os
import signal

import pytest

from gunicorn_cluster_ext.runtime.board.layout import DECISION_WORDS, WORD_NAMES, State, Word
from tests.harness.clients.connection import Connection, request_bytes
from tests.harness.clients.scrape import Scrape, Series
from tests.harness.programs import StartGunicorn
from tests.harness.servers.site import READY_MADE, Site, StartSite, for_each
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until
from tests.harness.watcher import Watcher

pytestmark = pytest.mark.one_gunicorn

MEASURED = "from counted_requests import app\n"
REQUESTS = "gunicorn_cluster_requests_total"


def scrape(site: Site) -> Scrape:
    answer = site.server.get("/metrics")
    assert answer.status == 200
    return Scrape(answer.body.decode())


class Watched(Watcher):
    """Scrapes all the time, in a thread, and notes counters that decrease."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.last: dict[Series, float] = {}
        self.scrapes = 0
        self.complaints: list[str] = []

    def look(self) -> None:
        try:
            seen = scrape(self._site)
        except OSError:  # the worker that was to answer was killed
            return
        self._compare({series: seen.samples[series] for series in seen.counters()})

    def _compare(self, counters: dict[Series, float]) -> None:
        self.scrapes += 1
        for series, value in self.last.items():
            if counters.get(series, -1) < value:
                self.complaints.append(f"{series}: {value} -> {counters.get(series)}")
        self.last |= counters


def kill(site: Site, slot: int) -> None:
    """End a worker, and wait for its replacement."""
    pid, generation = site.view.pids()[slot], site.view.generations()[slot]
    os.kill(pid, signal.SIGKILL)
    site.view.wait_generation(slot, generation + 1)


def test_what_stands_on_the_board(site: StartSite) -> None:
    measured = site(code=MEASURED)
    for slot in (0, 1, 1):
        measured.server.get("/?cache", Cookie=f"gunicorn_worker={slot}")
    slowest = "gunicorn_cluster_arbiter_slowest_turn_seconds"
    # On a busy machine the workers may be ready before the arbiter's first turn has ended.
    wait_until(lambda: scrape(measured).get(slowest) > 0, PATIENCE_S, "the end of a turn")
    seen = scrape(measured)
    assert seen.by("gunicorn_cluster_workers", "state") == {
        "booting": 0,
        "ready": 3,
        "draining": 0,
        "parked": 0,
    }
    assert seen.get("gunicorn_cluster_workers_wanted") == 3
    assert seen.by("gunicorn_cluster_worker_threads", "worker") == {"0": 8, "1": 8, "2": 8}
    assert seen.total(REQUESTS) >= 3
    assert seen.by(REQUESTS, "worker")["1"] >= 2
    assert seen.get("gunicorn_cluster_cache_misses_total") == 3
    assert seen.get("gunicorn_cluster_cache_hits_total") == 0
    assert seen.by("gunicorn_cluster_rolls_total", "outcome") == {"committed": 0, "failed": 0}
    assert seen.get("gunicorn_cluster_arbiter_faults_total") == 0
    assert seen.get("gunicorn_cluster_roll_in_progress") == 0
    assert 0 < seen.get(slowest) < 5
    assert all(family.documentation for family in seen.families)


@pytest.mark.parametrize(
    "kind", [STICKY, "gunicorn_cluster_ext.StickyASGI", "gunicorn_cluster_ext.StickyGevent"]
)
def test_which_rules_find_an_owner(site: StartSite, kind: str) -> None:
    sticky = ["engineio", "cookie", "hash:header:X-User", "hash:query:room"]
    app = "lifespan:app" if kind.endswith("ASGI") else "whoami:app"
    measured = site(app, worker_class=kind, cluster_sticky=sticky)
    for _ in range(2):
        measured.server.get("/", Cookie="gunicorn_worker=1")
    for _ in range(3):
        measured.server.get("/", **{"X-User": "ada"})
    measured.server.get("/?room=4")
    for _ in range(4):
        measured.server.get("/")
    decisions = {WORD_NAMES[word]: measured.view.counted(word) for word in DECISION_WORDS.values()}
    assert {name: number for name, number in decisions.items() if number} == {
        "routed_cookie": 2,
        "routed_hash_header": 3,
        "routed_hash_query": 1,
        "routed_none": 4,
    }


def test_how_busy_it_is(site: StartSite) -> None:
    measured = site(code=MEASURED, workers=2, threads=2)
    waiting: list[Connection] = []
    for slot in (0, 0, 1):
        waiting.append(measured.server.connect())
        cookie = {"Cookie": f"gunicorn_worker={slot}"}
        waiting[-1].send(request_bytes("GET", "/?sleep=2", cookie))
    # The scrape itself is a request in progress.
    wait_until(
        lambda: scrape(measured).get("gunicorn_cluster_busy_ratio") == 4 / 4, 2, "busy workers"
    )
    for connection in waiting:
        assert connection.answer().status == 200
        connection.close()
    wait_until(
        lambda: scrape(measured).get("gunicorn_cluster_busy_ratio") == 1 / 4, 5, "idle workers"
    )


def test_counters_never_go_backwards(site: StartSite) -> None:
    """This holds through kills, rolls, and fewer workers."""
    measured = site(code=MEASURED, workers=3, cluster_restart_delay=0)
    with measured.load(connections=6, pause=0.01, request=for_each(3)) as load:
        with Watched(measured) as watched:
            for slot in (0, 1, 2, 0):
                kill(measured, slot)
            measured.roll()
            measured.deploy("raise RuntimeError\n")
            measured.configure(workers=2)
            measured.hup()
            wait_until(lambda: measured.view.roll.reason, PATIENCE_S, "a failed roll")
            measured.deploy(MEASURED)
            measured.roll()
            measured.view.wait_slots(2)
    assert watched.complaints == []
    assert watched.scrapes > 50
    seen = scrape(measured)
    assert seen.by("gunicorn_cluster_rolls_total", "outcome") == {"committed": 2, "failed": 1}
    exits = "gunicorn_cluster_worker_exits_total"
    assert seen.get(exits, worker="0", reason="crash") == 2
    assert seen.get(exits, worker="2", reason="request") == 1, "fewer workers were wanted"
    assert sum(seen.get(exits, worker=slot, reason="roll") for slot in "012") >= 5
    assert set(seen.by(REQUESTS, "worker")) == {"0", "1", "2"}, "also of the slot that has gone"
    # A killed worker takes a turn's requests with it.
    answers = load.report.answers + watched.scrapes
    assert answers * 0.95 < seen.total(REQUESTS) <= answers + 2 * len(load.report.failures) + 1


def test_nothing_is_lost_in_a_roll(site: StartSite) -> None:
    measured = site(code=MEASURED)
    with measured.load(connections=6, pause=0.01, request=for_each(3)) as load:
        measured.roll()
    assert load.report.complaints() == []
    measured.view.wait_slots(3, generation=2)
    wait_until(
        lambda: measured.view.counted(Word.REQUESTS) == load.report.answers, 3, "all requests"
    )


@pytest.mark.parametrize("kind", ["asgi", "gunicorn_cluster_ext.StickyASGI"])
def test_an_asgi_application(gunicorn: StartGunicorn, kind: str) -> None:
    config = f"{READY_MADE}worker_class = {kind!r}\nworkers = 2\ngraceful_timeout = 1\n"
    server = gunicorn("counted_requests_asgi:app", config=config, wait=False)
    View(server).wait_slots(2)
    wait_until(lambda: server.get("/").status == 200, PATIENCE_S, "an answer")
    seen = Scrape(server.get("/").body.decode())
    assert seen.by("gunicorn_cluster_workers", "state")["ready"] == 2
    # gunicorn's own workers do not say how busy they are.
    says = ("gunicorn_cluster_busy_ratio", frozenset()) in seen.samples
    assert says == (kind != "asgi")


# --- prometheus_client's own files ----------------------------------------------------------------


def files(site: Site) -> set[str]:
    return {path.name for path in (site.directory / "prometheus").iterdir()}


@pytest.fixture(params=[False, True], ids=["", "preloaded"])
def counting(request: pytest.FixtureRequest, site: StartSite) -> Site:
    """A server whose configuration sets the directory of prometheus_client's files."""
    hooks = (
        "import os\n"
        "os.makedirs('prometheus', exist_ok=True)\n"
        "os.environ['PROMETHEUS_MULTIPROC_DIR'] = os.path.abspath('prometheus')\n"
    )
    return site(
        code=MEASURED,
        hooks=hooks,
        preload_app=request.param,
        workers=2,
        cluster_restart_delay=0,
        cluster_min_uptime=0,
        cluster_restart_limit="",
    )


def greet_each(site: Site) -> None:
    for slot in (0, 1):
        answer = site.server.get("/", Cookie=f"gunicorn_worker={slot}")
        assert answer.json()["worker"] == slot


def greetings(site: Site) -> float:
    return scrape(site).get("greetings_total", kind="any")


def test_files_are_those_of_seats(counting: Site) -> None:
    greet_each(counting)
    assert greetings(counting) == 2
    master = counting.server.master_pid
    expected = {f"counter_{master}-seat{seat}.db" for seat in (0, 2)}
    assert files(counting) >= expected
    assert len(files(counting)) <= 2 * 3


def test_fifty_restarts_leave_no_files_behind(counting: Site) -> None:
    greet_each(counting)
    first = files(counting)
    for number in range(50):
        kill(counting, number % 2)
        greet_each(counting)
    assert sum(counting.view.generations().values()) == 52
    assert files(counting) == first
    assert greetings(counting) == 102


def test_live_gauges_go_with_their_process(counting: Site) -> None:
    for slot in (0, 1):
        counting.server.get("/?stay", Cookie=f"gunicorn_worker={slot}")
    assert scrape(counting).get("guests") == 2
    kill(counting, 0)
    assert scrape(counting).get("guests") == 1


def test_two_processes_of_a_slot_count_at_once(counting: Site) -> None:
    """In a roll the old ones finish while the new ones serve."""
    greet_each(counting)
    # So that every seat has its files: prometheus_client cannot read one that is being made.
    counting.roll()
    greet_each(counting)
    lingering = []
    for slot in (0, 1):
        lingering.append(counting.server.connect())
        cookie = {"Cookie": f"gunicorn_worker={slot}"}
        lingering[-1].send(request_bytes("GET", "/?sleep=3", cookie))
    wait_until(lambda: greetings(counting) == 6, 2, "two requests in progress")
    with counting.load(connections=4, pause=0.005, request=for_each(2)) as load:
        with Watched(counting) as watched:
            counting.roll()
            wait_until(lambda: _draining(counting) == 2, 2, "two processes that drain")
            counting.hup()
            for connection in lingering:
                assert connection.answer().status == 200
                connection.close()
            counting.view.wait_slots(2, generation=4)
    assert watched.complaints == [] and watched.scrapes > 10
    assert load.report.complaints() == []
    assert greetings(counting) == 6 + load.report.answers
    assert len([name for name in files(counting) if "seat" in name]) <= 4 * 3


def _draining(site: Site) -> int:
    return [row.state for row in site.view.rows].count(State.DRAINING)
