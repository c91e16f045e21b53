"""What responses teach, end to end: clients keep the process whose memory holds their visit."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from gunicorn_cluster_ext.runtime.board.layout import State
from tests.harness.clients.connection import Answer
from tests.harness.programs import StartGunicorn, StartNginx
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.nginx import in_front_of
from tests.harness.servers.site import StartSite
from tests.harness.view import EVERY_KIND, PATIENCE_S, View
from tests.harness.waiting import wait_until

pytestmark = [EVERY_KIND, pytest.mark.one_gunicorn]

WORKERS = 4
VISITS = 24
CALLS = 5
HEADER, COOKIE = "learn:header:X-Visit", "learn:cookie:VISIT"


def start(sticky: StartGunicorn, *rules: str, **settings: Any) -> Gunicorn:
    settings = {"cluster_sticky": list(rules), "keepalive": 60, **settings}
    config = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    server = sticky("memory_sessions:app", "-w", str(WORKERS), config=config)
    View(server).wait_slots(WORKERS)
    return server


class Visit:
    """One client's. It makes a new connection for each request."""

    def __init__(self, server: Gunicorn) -> None:
        self._server = server
        answer = server.get("/begin")
        self.name = answer.headers["X-Visit"]
        self.begun = answer.json()
        self.calls = 0

    def ask(self) -> Answer:
        return self._server.get("/", x_visit=self.name)

    def call(self) -> None:
        answer = self.ask()
        self.calls += 1
        assert answer.status == 200, answer.body
        assert answer.json() | {"client_port": None} == self.begun | {
            "client_port": None,
            "calls": self.calls,
        }


def begin(server: Gunicorn, least: int = VISITS) -> list[Visit]:
    """Visits on several workers; which one accepts a connection is the kernel's choice."""
    begun: list[Visit] = []

    def are_enough() -> bool:
        begun.append(Visit(server))
        return len(begun) >= least and len({visit.begun["worker"] for visit in begun}) >= 3

    while not are_enough():
        assert len(begun) < least + 300, "few workers: this tests nothing"
    return begun


# --- header -----------------------------------------------------------------------------------


def test_a_header_brings_every_request_to_its_process(sticky: StartGunicorn) -> None:
    server = start(sticky, HEADER)
    view = View(server)
    visits = begin(server)
    for _ in range(CALLS):
        for visit in visits:
            visit.call()
    assert view.total("handed_in") > 0
    assert view.total("routed_learn") >= len(visits) * CALLS
    assert view.total("sessions") == len(visits)


def test_clients_that_share_a_connection(sticky: StartGunicorn) -> None:
    """As a reverse proxy mixes them."""
    server = start(sticky, HEADER)
    visits = begin(server)
    with server.connect() as connection:
        answers = [connection.get("/", x_visit=each.name) for _ in range(3) for each in visits]
    assert {answer.status for answer in answers} == {200}
    pids = [answer.json()["pid"] for answer in answers]
    assert pids == [visit.begun["pid"] for visit in visits] * 3


def test_without_the_rule_visits_are_lost(sticky: StartGunicorn) -> None:
    server = start(sticky)
    visits = begin(server)
    statuses = [visit.ask().status for _ in range(CALLS) for visit in visits]
    assert statuses.count(404) > len(statuses) / 4


def test_a_value_that_nobody_gave_is_anybodys(sticky: StartGunicorn) -> None:
    server = start(sticky, HEADER)
    begin(server)
    view = View(server)
    before = view.total("handed_in")
    for value in ("x" * 4_000, "", "'; --", "\xff\xfe", "a, b"):
        assert server.get("/", x_visit=value).status == 404
    assert view.total("handed_in") == before


def test_visits_are_spread(sticky: StartGunicorn) -> None:
    """Although the kernel may let one worker accept all connections.

    A worker keeps a new visit while it has begun no more than 9/8 of the fewest, and one. So none
    has more than 12 of 40, if each begins when the worker of the last has nothing to do any more.
    """
    server = start(sticky, HEADER)
    view = View(server)
    for _ in range(40):
        wait_until(lambda: view.total("busy") == 0, PATIENCE_S, "workers with nothing to do")
        Visit(server)
    sessions = [row.words["sessions"] for row in view.rows]
    assert sum(sessions) == 40
    assert min(sessions) >= 8 and max(sessions) <= 12, sessions


def test_a_process_that_is_gone(sticky: StartGunicorn) -> None:
    """Its slot's next process says that it knows no such visit; the client begins anew."""
    server = start(sticky, HEADER)
    view = View(server)
    visits = begin(server)
    slot, old = visits[0].begun["worker"], visits[0].begun["pid"]
    os.kill(old, signal.SIGKILL)
    view.wait_generation(slot, 2)
    pids = view.wait_slots(WORKERS)
    for visit in visits:
        if visit.begun["pid"] != old:
            visit.call()
        else:
            answer = visit.ask()
            assert (answer.status, answer.json()["pid"]) == (404, pids[slot])
    Visit(server).call()


def test_what_is_not_used_is_forgotten(sticky: StartGunicorn) -> None:
    server = start(sticky, HEADER, cluster_learn_ttl=4)
    *visits, used = begin(server, 300)
    unused: Iterator[Visit] = iter(visits)

    def forgotten() -> bool:
        used.call()
        return next(unused).ask().status == 404  # to ask for one is to use it

    wait_until(forgotten, PATIENCE_S, "a visit that is not found")
    used.call()


# --- cookie -----------------------------------------------------------------------------------


class Browser(requests.Session):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.trust_env = False
        self.url = url

    def visit(self, calls: int) -> set[int]:
        """The processes that answered."""
        pids = {self.ask("/begin")["pid"]}
        for number in range(1, calls + 1):
            who = self.ask("/")
            assert who["calls"] == number
            pids.add(who["pid"])
        return pids

    def ask(self, path: str) -> Any:
        with self.get(self.url + path, timeout=20) as answer:
            answer.raise_for_status()
            return answer.json()


def browse(url: str) -> set[int]:
    with Browser(url) as browser:
        return browser.visit(CALLS)


@pytest.mark.parametrize("rules", [(COOKIE,), (COOKIE, "cookie")], ids=" ".join)
def test_a_cookie_brings_every_request_to_its_process(
    sticky: StartGunicorn, rules: tuple[str, ...]
) -> None:
    server = start(sticky, *rules)
    with ThreadPoolExecutor(8) as crowd:
        pids = list(crowd.map(browse, [server.url] * VISITS))
    assert all(len(each) == 1 for each in pids)
    assert len(set.union(*pids)) >= 2


def test_cookies_through_nginx_that_keeps_its_connections(
    sticky: StartGunicorn, nginx: StartNginx
) -> None:
    server = start(sticky, COOKIE)
    proxy = nginx(in_front_of(server.port, keepalive=16))
    with ThreadPoolExecutor(8) as crowd:
        pids = list(crowd.map(browse, [f"http://127.0.0.1:{proxy.port}"] * VISITS))
    assert all(len(each) == 1 for each in pids)
    assert len(set.union(*pids)) >= 2
    assert View(server).total("handed_in") > 0


# --- over time --------------------------------------------------------------------------------


def test_visits_go_on_while_the_server_rolls(sticky: StartGunicorn) -> None:
    """Also when nobody asks for a while: only the drain timeout ends them."""
    server = start(sticky, HEADER, cluster_drain_timeout=12)
    view = View(server)
    old = set(view.pids().values())
    visits = begin(server)
    server.signal(signal.SIGHUP)
    view.wait_roll(1)
    committed = time.monotonic()
    assert not old & set(view.pids().values())
    new = [Visit(server) for _ in range(8)]
    while time.monotonic() < committed + 3:
        for visit in (*visits, *new):
            visit.call()
    draining = {row.words["pid"] for row in view.rows if row.state is State.DRAINING}
    assert draining == {visit.begun["pid"] for visit in visits}
    view.wait_slots(WORKERS, generation=2)
    assert time.monotonic() - committed > 9  # nobody asked for six seconds
    assert {visit.ask().status for visit in visits} == {404}
    for visit in new:
        visit.call()


def test_visits_do_not_hold_up_the_end_of_the_server(sticky: StartGunicorn) -> None:
    server = start(sticky, HEADER, cluster_drain_timeout=60)
    begin(server)
    asked = time.monotonic()
    server.signal(signal.SIGTERM)
    server.wait_exit(30)
    assert time.monotonic() - asked < 15


def test_a_reload_brings_the_rule(site: StartSite) -> None:
    running = site(app="memory_sessions:app", cluster_sticky=["cookie"])
    running.configure(cluster_sticky=[HEADER])
    running.roll()
    running.view.wait_slots(3, generation=2)
    visits = [Visit(running.server) for _ in range(12)]
    for _ in range(3):
        for visit in visits:
            visit.call()
    # And another keeps what was learned.
    running.configure(cluster_learn_ttl=1_000, cluster_drain_timeout=30)
    running.roll()
    for visit in visits:
        visit.call()
