"""Workers that drain or are parked beside others, as threads of this process."""

import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from gunicorn_cluster_ext.routing.tags import ProcessTag
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Order, Place, State, Word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED, HandoffMessage, Inboxes
from gunicorn_cluster_ext.runtime.learned import LearnedSessions
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.workers import handoff, membership
from gunicorn_cluster_ext.workers.thread.worker import Sticky
from tests.harness.clients.connection import Answer, Connection, request_bytes
from tests.harness.reference import config
from tests.harness.waiting import wait_until

PATIENCE_S = 20
#: The smallest number of idle connections that no inbox has room for (278 were counted).
MANY = 400


class Member:
    """A worker in a seat, whose application answers with the seat."""

    def __init__(self, site: "Site", seat: int, generation: int) -> None:
        self.site, self.seat = site, seat
        self.waits = threading.Event()
        self.may_go_on = threading.Event()
        self.worker = site.build(self, Place(seat // 2, seat, generation))
        self._thread = threading.Thread(target=self.worker.run)

    def app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/wait":
            self.waits.set()
            assert self.may_go_on.wait(PATIENCE_S)
        body = str(self.seat).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    @property
    def state(self) -> State:
        return self.site.board.state(self.seat)

    def start(self) -> "Member":
        self._thread.start()
        self.wait_state(State.READY)
        return self

    def wait_state(self, state: State) -> None:
        wait_until(lambda: self.state is state, PATIENCE_S, f"seat {self.seat} to be {state!r}")

    def order(self, order: Order, state: State) -> None:
        self.site.board.set(self.seat, Word.ORDER, order)
        self.worker.handle_winch(0, None)
        self.wait_state(state)

    def leave(self) -> None:
        """Order it to finish, as SIGTERM does."""
        self.worker.handle_exit(0, None)
        wait_until(lambda: self.state in (State.DRAINING, State.GONE), PATIENCE_S, "it to leave")

    def wait_gone(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive() and self.state is State.GONE

    def stop(self) -> None:
        self.may_go_on.set()
        self.worker.handle_exit(0, None)
        self._thread.join(PATIENCE_S)
        wait_until(self._has_finished, PATIENCE_S, "the last requests")
        self.worker.tmp.close()

    def _has_finished(self) -> bool:
        """Close what threads finish after the main loop. In a real worker the process ends then."""
        for conn, _ in self.worker.tpool.finished():
            conn.release()
        return not self.worker.tpool.busy


class Site:
    """A server of three slots, one listener, and the workers that a test starts."""

    def __init__(self) -> None:
        self.board, self.inboxes = Board.create(3), Inboxes(6)
        self.board.target = 1
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.cfg = config(threads=4, keepalive=60, graceful_timeout=15, worker_connections=5000)
        self.settings = Settings(head_timeout=60, drain_timeout=15)
        self.members: list[Member] = []
        self.memory: LearnedSessions | None = None

    def start(self, seat: int, generation: int = 2) -> Member:
        """Start a worker in ``seat``, and return it when it is ready."""
        self.board.clear(seat, generation, now=1)
        self.members.append(Member(self, seat, generation))
        return self.members[-1].start()

    def build(self, member: Member, place: Place) -> Sticky:
        worker = Sticky.__new__(Sticky)
        sockets = [self.listener.dup()]
        log = Logger(self.cfg)
        ThreadWorker.__init__(worker, 1, os.getppid(), sockets, None, 30, self.cfg, log)
        shared: Any = SimpleNamespace(
            settings=self.settings, board=self.board, inboxes=self.inboxes, learned=self.memory
        )
        worker.shared, worker.place, worker.wsgi = shared, place, member.app
        worker.tpool, worker.poller = worker.get_thread_pool(), selectors.DefaultSelector()
        worker.method_queue.init()
        worker.load_rules()
        self.board.set(place.seat, Word.THREADS, self.cfg.threads)
        return worker

    def connect(self) -> Connection:
        return Connection(self.listener.getsockname(), timeout=PATIENCE_S)

    def close(self) -> None:
        for each in self.members:
            each.stop()
        self.inboxes.close()
        self.listener.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def connect(site: Site) -> Iterator[Callable[[], Connection]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(site.connect())


def seat_of(answer: Answer) -> int:
    """Return the seat of the worker that has answered, and keeps the connection."""
    assert answer.status == 200
    assert answer.headers["Connection"] == "keep-alive"
    return int(answer.body)


def ask(connection: Connection, target: str = "/", slot: int | None = None) -> int:
    cookie = {} if slot is None else {"Cookie": f"gunicorn_worker={slot}"}
    return seat_of(connection.request("GET", target, cookie))


def sid(member: Member) -> str:
    place = member.worker.place
    return f"/?EIO=4&sid=abc.{place.slot}.{place.generation}"


Connect = Callable[[], Connection]

# --- SIGTERM ----------------------------------------------------------------------------------


@pytest.mark.parametrize("heir", [3, 0], ids=["the slot's other seat", "another slot"])
def test_a_worker_that_leaves_closes_no_connection(site: Site, connect: Connect, heir: int) -> None:
    leaving = site.start(2)
    idle, silent, half, busy = (connect() for _ in range(4))
    assert [ask(idle), ask(busy)] == [2, 2]
    half.send(b"GET / HTTP/1.1\r\nHo")
    busy.send(request_bytes("GET", "/wait"))
    assert leaving.waits.wait(PATIENCE_S)
    wait_until(lambda: leaving.worker.nr_conns == 4, PATIENCE_S, "all connections")
    other = site.start(heir, generation=3)
    leaving.leave()
    assert [ask(idle), ask(silent)] == [heir, heir]
    half.send(b"st: localhost\r\n\r\n")
    assert seat_of(half.answer()) == heir
    assert leaving.state is State.DRAINING
    leaving.may_go_on.set()
    assert seat_of(busy.answer()) == 2
    leaving.wait_gone()
    assert ask(busy) == heir
    assert other.worker.nr_conns == 4


def test_more_idle_connections_than_an_inbox_has_room_for(site: Site, connect: Connect) -> None:
    leaving = site.start(2)
    connections = [connect() for _ in range(MANY)]
    assert {ask(each) for each in connections} == {2}
    site.start(3, generation=3)
    leaving.leave()
    leaving.wait_gone()
    assert {ask(each) for each in connections} == {3}


def test_a_head_that_no_message_can_carry_is_served_where_it_began(
    site: Site, connect: Connect
) -> None:
    leaving, connection = site.start(2), connect()
    fields = [f"X-{number}: {'x' * 8_000}" for number in range(12)]
    head = "\r\n".join(["GET / HTTP/1.1", "Host: localhost", *fields])
    connection.send(head.encode())
    wait_until(
        lambda: any(len(each.received) > MAX_RECEIVED for each in leaving.worker.partial),
        PATIENCE_S,
        "a long head",
    )
    site.start(3, generation=3)
    leaving.leave()
    connection.send(b"\r\n\r\n")
    assert seat_of(connection.answer()) == 2
    assert ask(connection) == 3


def test_without_an_heir_clients_are_told_to_close(site: Site, connect: Connect) -> None:
    leaving, busy, next_one = site.start(2), connect(), connect()
    assert ask(next_one) == 2
    busy.send(request_bytes("GET", "/wait"))
    assert leaving.waits.wait(PATIENCE_S)
    leaving.leave()
    answer = next_one.get("/")
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    leaving.may_go_on.set()
    assert busy.answer().status == 200
    leaving.wait_gone()


def test_without_an_heir_idle_connections_wait_in_the_inbox(site: Site, connect: Connect) -> None:
    leaving, connection = site.start(2), connect()
    assert ask(connection) == 2
    leaving.leave()
    leaving.wait_gone()
    site.start(2, generation=3)
    assert ask(connection) == 2


def test_a_request_that_outlives_the_drain_timeout_is_given_up(
    site: Site, connect: Connect
) -> None:
    site.settings = Settings(drain_timeout=0.3)
    leaving, busy = site.start(2), connect()
    busy.send(request_bytes("GET", "/wait"))
    assert leaving.waits.wait(PATIENCE_S)
    site.start(3, generation=3)
    leaving.leave()
    leaving.wait_gone()


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_stays_where_it_is(
    site: Site, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "SESSION_QUIET_S", 0.5)
    leaving, connection = site.start(2), connect()
    site.board.set(2, Word.SESSIONS, 1)
    site.start(3, generation=3)
    leaving.leave()
    for _ in range(5):
        time.sleep(0.2)
        asked = time.monotonic()
        assert ask(connection, sid(leaving)) == 2
        assert ask(connection, slot=1) == 3
    leaving.wait_gone()
    assert time.monotonic() - asked >= 0.5
    assert ask(connection, sid(leaving)) == 3


def test_a_learned_session_is_waited_for_until_it_is_forgotten_however_quiet(
    site: Site, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "SESSION_QUIET_S", 0)
    site.memory, connection = LearnedSessions(8, ttl=2), connect()
    leaving = site.start(2)
    site.memory.join(ProcessTag(1, 2), 2)
    site.memory.learn("learn:header:X-Key", b"abc")
    learned = time.monotonic()
    site.board.set(2, Word.SESSIONS, 1)
    site.start(3, generation=3)
    leaving.leave()
    assert ask(connection, sid(leaving)) == 2
    leaving.wait_gone()
    assert time.monotonic() - learned >= 2


def test_without_sessions_nothing_is_waited_for(site: Site, connect: Connect) -> None:
    leaving, connection = site.start(2), connect()
    assert ask(connection) == 2
    site.start(3, generation=3)
    begun = time.monotonic()
    leaving.leave()
    leaving.wait_gone()
    assert time.monotonic() - begun < membership.SESSION_QUIET_S / 2


def test_without_an_heir_sessions_are_not_waited_for(site: Site) -> None:
    """The sooner the worker exits, the sooner its replacement is there."""
    leaving = site.start(2)
    site.board.set(2, Word.SESSIONS, 1)
    begun = time.monotonic()
    leaving.leave()
    leaving.wait_gone()
    assert time.monotonic() - begun < membership.SESSION_QUIET_S / 2


# --- parking ----------------------------------------------------------------------------------


def test_parked_and_called_back(site: Site, connect: Connect) -> None:
    old, idle, busy = site.start(2), connect(), connect()
    assert ask(idle) == 2
    busy.send(request_bytes("GET", "/wait"))
    assert old.waits.wait(PATIENCE_S)
    new = site.start(3, generation=3)
    old.order(Order.PARK, State.PARKED)
    assert {ask(idle), ask(idle, slot=1)} == {3}
    assert ask(idle, sid(old)) == 2
    # What comes together with a request of the parked one is not served there, too.
    idle.send(request_bytes("GET", sid(old)) + request_bytes("GET", "/"))
    assert [seat_of(idle.answer()), seat_of(idle.answer())] == [2, 3]
    handed = site.board.get(2, Word.HANDED_OUT)
    assert {ask(connect()) for _ in range(10)} == {3}
    assert site.board.get(2, Word.HANDED_OUT) == handed, "it accepts nothing"
    old.may_go_on.set()
    assert seat_of(busy.answer()) == 2
    assert ask(busy) == 3
    wait_until(lambda: old.worker.nr_conns == 0, PATIENCE_S, "no connections")
    old.order(Order.SERVE, State.READY)
    new.leave()
    new.wait_gone()
    assert {ask(idle), ask(busy), ask(connect())} == {2}


def test_a_worker_that_is_parked_alone_serves_what_it_has(site: Site, connect: Connect) -> None:
    alone, connection = site.start(2), connect()
    assert ask(connection) == 2
    alone.order(Order.PARK, State.PARKED)
    assert ask(connection) == 2
    assert ask(connection, slot=1) == 2


def test_a_parked_worker_can_finish(site: Site, connect: Connect) -> None:
    old, connection = site.start(2), connect()
    assert ask(connection) == 2
    old.order(Order.PARK, State.PARKED)
    old.leave()
    old.wait_gone()


# --- what comes too late ----------------------------------------------------------------------


def test_what_is_sent_to_a_worker_that_exits_meanwhile_is_taken_back(
    site: Site, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender is held up after it has read the board."""
    site.start(0)
    connection = connect()
    send = site.inboxes.send

    def send_late(seat: int, *args: Any) -> bool:
        site.board.set(seat, Word.STATE, State.GONE)
        return send(seat, *args)

    monkeypatch.setattr(site.inboxes, "send", send_late)
    monkeypatch.setattr(handoff, "SWEEP_INTERVAL_S", 1_000)
    site.board.clear(2, generation=2, now=1)
    site.board.set(2, Word.STATE, State.READY)
    assert ask(connection, slot=1) == 0
    assert ask(connection, slot=1) == 0


@pytest.fixture
def sweeper(site: Site) -> Iterator[Sticky]:
    """The worker that sweeps, with its main loop stalled and a connection in every inbox."""
    for seat in (0, 2, 3, 4):
        site.board.clear(seat, generation=2, now=1)
        site.board.set(seat, Word.STATE, State.GONE if seat else State.READY)
    worker = Member(site, 0, 2).worker
    worker.open()
    worker.membership.serves = True
    with ExitStack() as stack:
        for seat in (0, 2, 3, 4):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            message = HandoffMessage(b"", ("192.0.2.1", 1), ("127.0.0.1", 80), 0, 0, False)
            site.inboxes.send(seat, message, ours.fileno())
        yield worker
        for conn in worker.idle():
            worker.drop(conn)
    worker.close_loop()
    worker.tmp.close()


def full(site: Site) -> list[int]:
    """Return the seats with something in their inboxes."""
    readers = {site.inboxes.reader(seat): seat for seat in range(6)}
    return sorted(readers[reader] for reader in select.select(list(readers), [], [], 0)[0])


def test_what_a_dead_worker_left_waits_for_its_replacement(site: Site, sweeper: Sticky) -> None:
    sweeper.handoff.sweep(10)
    assert full(site) == [0, 2, 3, 4]
    site.board.set(4, Word.STATE, State.BOOTING)
    sweeper.handoff.sweep(20)
    assert full(site) == [0, 4]


def test_what_a_dead_worker_left_beside_its_successor_is_taken_at_once(
    site: Site, sweeper: Sticky
) -> None:
    site.board.set(3, Word.STATE, State.READY)
    sweeper.handoff.sweep(10)
    assert full(site) == [0, 3, 4]


@pytest.mark.parametrize("state", [State.DRAINING, State.PARKED])
def test_only_the_worker_that_serves_in_the_lowest_slot_sweeps(
    site: Site, sweeper: Sticky, state: State
) -> None:
    site.board.clear(1, generation=3, now=1)
    site.board.set(1, Word.STATE, State.READY)
    sweeper.membership.set_state(state)
    sweeper.handoff.sweep(10)
    sweeper.handoff.sweep(20)
    assert full(site) == [0, 2, 3, 4]
