"""The path of decisions, with hooks that note what a connection is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_cluster_ext.routing.head import Head
from gunicorn_cluster_ext.routing.rules import Owner
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Place, State, Word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.workers.connection import Connection
from gunicorn_cluster_ext.workers.dispatch import MAX_HOPS, MIN_FAIR_SHARE, Dispatcher
from gunicorn_cluster_ext.workers.head_reader import HeadReader
from tests.harness.reference import config

ME, OTHER = 0, 2
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Worker(Dispatcher[Connection]):
    """The worker in seat 0. ``told`` are the hooks that were called."""

    room = True
    behind = False
    inbox_has_room = True
    owner: Owner | None = None

    def __init__(self, **cfg: Any) -> None:
        self.board = Board.create(2)
        settings = Settings(handoff_timeout=10)
        self.shared: Any = SimpleNamespace(board=self.board, settings=settings)
        self.place = Place(0, ME, 1)
        self.membership: Any = SimpleNamespace(serves=True)
        self.handoff: Any = SimpleNamespace(loads=self.board.loads, send=self.send)
        self.head_reader = HeadReader(config(**cfg))
        self.rules: list[Any] = []
        self.blocked: dict[Connection, float] = {}
        self.told: list[Any] = []

    def serve_in(self, seat: int, busy: int = 0) -> None:
        self.board.set(seat, Word.STATE, State.READY)
        self.board.set(seat, Word.BUSY, busy)
        self.board.set(seat, Word.THREADS, 4)
        self.board.beat(seat)

    def send(self, conn: Connection, seat: int) -> bool:
        if self.inbox_has_room:
            self.told.append(seat)
        return self.inbox_has_room

    def owner_of(self, head: Head) -> Owner | None:
        return self.owner

    def has_room(self) -> bool:
        return self.room

    def is_behind(self) -> bool:
        return self.behind

    def wait(self, conn: Connection) -> None:
        self.told.append("wait")

    def start(self, conn: Connection) -> None:
        self.told.append("start")

    def serve(self, conn: Connection, head: Any) -> None:
        self.told.append("serve")

    def block(self, conn: Connection) -> None:
        self.told.append("block")

    def refuse(self, conn: Connection, status: int, reason: str, headers: str = "") -> None:
        self.told.append(status)

    def take(self, received: bytes, **known: Any) -> list[Any]:
        """What becomes of a connection that has received so much."""
        conn = Connection()
        conn.address, conn.client, conn.received = "192.0.2.1", ("192.0.2.1", 1), received
        for name, value in known.items():
            setattr(conn, name, value)
        self.told.clear()
        self.resume_handed(conn)
        return self.told


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.mark.parametrize(
    ("received", "told"),
    [
        (b"", "wait"),
        (REQUEST[:-1], "wait"),
        (REQUEST, "serve"),
        (b"no request at all\r\n\r\n", "serve"),
        (b"GET / HTTP/9.9\r\n", "serve"),
    ],
    ids=["nothing", "half a head", "a head", "unreadable", "half a head with an error"],
)
def test_what_was_received_decides(worker: Worker, received: bytes, told: str) -> None:
    worker.serve_in(OTHER)
    assert worker.take(received) == [told]


def test_bytes_that_are_no_plain_http_are_gunicorns() -> None:
    tls = Worker(certfile="cert.pem")
    tls.owner = Owner(OTHER, hard_affinity=True)
    assert tls.take(REQUEST) == ["serve"]
    assert tls.take(b"") == ["wait"]


def test_where_heads_cannot_be_read_the_address_decides_at_accept(worker: Worker) -> None:
    conn = Connection()
    conn.address = "192.0.2.1"
    worker.owner = Owner(OTHER, hard_affinity=False)
    worker.on_accepted(conn)
    assert worker.told == ["start"]
    worker.head_reader.are_readable = False
    worker.on_accepted(conn)
    assert worker.told == ["start", OTHER]


# --- the owner --------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [True, False])
def test_a_request_is_brought_to_its_owner(worker: Worker, hard: bool) -> None:
    worker.owner = Owner(OTHER, hard)
    assert worker.take(REQUEST) == [OTHER]
    assert worker.take(REQUEST, hops=MAX_HOPS) == ([OTHER] if hard else ["serve"])
    worker.owner = Owner(ME, hard)
    assert worker.take(REQUEST) == ["serve"]


def test_a_request_that_was_sent_to_its_owner_is_served(worker: Worker) -> None:
    worker.owner = Owner(OTHER, hard_affinity=True)
    assert worker.take(REQUEST, owned=True) == ["serve"]
    worker.membership.serves = False
    assert worker.take(REQUEST, owned=True) == [OTHER]


def test_what_no_message_can_carry_is_served(worker: Worker) -> None:
    worker.owner = Owner(OTHER, hard_affinity=True)
    assert worker.take(REQUEST.ljust(MAX_RECEIVED + 1, b"x")) == ["serve"]


def test_a_full_inbox(worker: Worker) -> None:
    worker.inbox_has_room = False
    worker.owner = Owner(OTHER, hard_affinity=False)
    assert worker.take(REQUEST) == ["serve"]
    worker.owner = Owner(OTHER, hard_affinity=True)
    assert worker.take(REQUEST) == ["block"]
    assert worker.board.get(ME, Word.INBOX_FULL) == 2
    worker.retry_blocked()
    assert worker.told == ["block", "block"]
    worker.inbox_has_room = True
    worker.retry_blocked()
    assert worker.told == ["block", "block", OTHER] and not worker.blocked


def test_a_request_is_not_blocked_for_ever(worker: Worker) -> None:
    worker.inbox_has_room = False
    worker.owner = Owner(OTHER, hard_affinity=True)
    worker.take(REQUEST)
    (conn,) = worker.blocked
    worker.blocked[conn] = 0
    worker.retry_blocked()
    assert worker.told == ["block", 503] and not worker.blocked


# --- a request without an owner ---------------------------------------------------------------


def test_a_request_without_an_owner_moves_only_for_a_reason(worker: Worker) -> None:
    worker.serve_in(ME, busy=1)
    worker.serve_in(OTHER)
    assert worker.take(REQUEST) == ["serve"]
    assert worker.take(WEBSOCKET) == [OTHER]
    assert worker.take(WEBSOCKET, hops=1) == ["serve"]
    worker.behind = True
    assert worker.take(REQUEST) == [OTHER]
    worker.board.set(OTHER, Word.BUSY, 1)
    assert worker.take(REQUEST) == ["serve"]
    worker.room = False
    worker.board.set(OTHER, Word.BUSY, 0)
    assert worker.take(REQUEST) == [OTHER]


@pytest.mark.parametrize("received", [REQUEST, WEBSOCKET])
@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("behind", [True, False])
def test_where_the_board_names_no_worker_requests_are_served_here(
    worker: Worker, received: bytes, room: bool, behind: bool
) -> None:
    """So it is when every loop is stalled, and when this worker drains alone."""
    worker.room, worker.behind = room, behind
    assert worker.take(received) == ["serve"]


def test_the_fair_share(worker: Worker) -> None:
    assert worker.is_fair_share(1_000), "the board names no worker"
    worker.serve_in(OTHER, busy=1)
    assert worker.is_fair_share(MIN_FAIR_SHARE - 1)
    assert worker.is_fair_share(MIN_FAIR_SHARE + 2)
    assert not worker.is_fair_share(MIN_FAIR_SHARE + 3)
