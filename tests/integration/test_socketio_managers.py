"""All that python-socketio can do, from one worker to the clients of another, in every mode."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gunicorn
import pytest

from tests.harness.clients.crowd import SERVERS
from tests.harness.clients.guests import Guest, Guests, hear_all
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

#: Guests go to the two workers in turn: so each has both.
MIXED = ("polling", "polling", "websocket", "websocket")
WAYS = [f"{kind}-{way}" for kind in SERVERS for way in ("bus", "redis")]


class Hall:
    """A server of two workers, and two guests on each: ``here`` and ``near``, ``there`` and
    ``far``."""

    def __init__(self, way: str, at_exit: ExitStack) -> None:
        kind, _, store = way.partition("-")
        self.app, self.worker = SERVERS[kind]
        self.at_exit = at_exit
        self.server = self._started(self._store() if store == "redis" else {})
        self.guests = Guests(self.server.url, MIXED, at_exit)
        self.here, self.near, self.there, self.far = self._seated()

    def _store(self) -> dict[str, str]:
        redis = Redis(self._directory())
        self.at_exit.callback(redis.stop)
        redis.wait_ready()
        return {"GUNICORN_CLUSTER_STORE": redis.url}

    def _directory(self) -> Path:
        return Path(self.at_exit.enter_context(TemporaryDirectory(prefix="gce-")))

    def _started(self, env: dict[str, str]) -> Gunicorn:
        options = ("-k", self.worker, "-w", "2", "--graceful-timeout", "3")
        server = Gunicorn(self._directory(), self.app, *options, env=env)
        self.at_exit.callback(lambda: print(server.report("stopped")))
        self.at_exit.callback(server.stop)
        server.wait_serving(2)
        return server

    def _seated(self) -> list[Guest]:
        def two_each(all: list[Guest]) -> bool:
            workers = [guest.worker for guest in all]
            return min(workers.count(0), workers.count(1)) >= 2

        all = self.guests.invite_until(two_each)
        seated = [[guest for guest in all if guest.worker == worker] for worker in (0, 1)]
        return [*seated[0][:2], *seated[1][:2]]

    @property
    def four(self) -> list[Guest]:
        return [self.here, self.near, self.there, self.far]

    def can_have_bytes(self, guest: Guest) -> bool:
        """gunicorn 25's asgi worker sends a WebSocket no bytes that come with a text of None."""
        is_old = gunicorn.version_info < (26,) and "ASGI" in self.worker
        return not is_old or guest.client.transport() == "polling"

    def visitor(self, namespace: str = "/") -> Guest:
        """Invite one more guest to the worker of ``there``."""

        def found(all: list[Guest]) -> bool:
            return all[-1].worker == self.there.worker

        # Not one that polls: when it says goodbye, an AsyncServer does not end its poll.
        return self.guests.invite_until(found, transport="websocket", namespace=namespace)[-1]

    def heard(self, *senders: Guest) -> list[list[tuple[Any, ...]]]:
        """Return all that each of the four has heard, by default from one sender."""
        return hear_all(self.four, senders or [self.here])


@pytest.fixture(scope="module", params=WAYS)
def open_hall(request: Any) -> Iterator[Hall]:
    with ExitStack() as stack:
        yield Hall(request.param, stack)


@pytest.fixture
def hall(open_hall: Hall) -> Hall:
    open_hall.heard(open_hall.here, open_hall.there)
    return open_hall


NOTHING: list[Any] = []


def test_emit_reaches_all(hall: Hall) -> None:
    hall.here.do("emit", "news", {"text": "hällo", "parts": [1, 2.5, None, True]})
    assert hall.heard() == [[("news", {"text": "hällo", "parts": [1, 2.5, None, True]})]] * 4


def test_values_are_what_they_were(hall: Hall) -> None:
    hall.here.client.call("emit_several", ("several", ["one", 2, ["three"]]))
    hall.here.do("emit", "list", ["one", 2])
    hall.here.do("emit", "nothing")
    heard = [
        ("several", "one", 2, ["three"]),
        ("list", ["one", 2]),
        ("nothing",),
    ]
    assert hall.heard() == [heard] * 4


def test_bytes(hall: Hall) -> None:
    """One by one: python-engineio makes one text of bytes for all that hear an emit, as the first
    of their transports has it."""
    able = [guest for guest in hall.four if hall.can_have_bytes(guest)]
    assert {guest.worker for guest in able} == {0, 1}
    for guest in able:
        able[0].do("emit", "bytes", b"\0\xff", to=guest.sid)
        able[0].do("emit", "deep", ["text", [b"\xfe", b""]], to=guest.sid)
    everything = [("bytes", b"\0\xff"), ("deep", ["text", [b"\xfe", b""]])]
    heard = hall.heard(able[0])
    assert heard == [everything if guest in able else NOTHING for guest in hall.four]


def test_order_and_size(hall: Hall) -> None:
    for number in range(50):
        size = 300_000 if number == 25 else 10
        hall.here.do("emit", "number", [number, "x" * size])
    for heard in hall.heard():
        assert [event[1][0] for event in heard] == list(range(50))
        assert len(heard[25][1][1]) == 300_000


def test_rooms(hall: Hall) -> None:
    """A guest that enters and leaves is on this worker, or on the other one."""
    hall.here.do("enter_room", hall.near.sid, "red")
    hall.here.do("enter_room", hall.there.sid, "red")
    hall.here.do("emit", "first", room="red")
    hall.here.do("leave_room", hall.there.sid, "red")
    hall.here.do("emit", "second", room="red")
    assert hall.heard() == [NOTHING, [("first",), ("second",)], [("first",)], NOTHING]


def test_several_rooms_tell_each_once(hall: Hall) -> None:
    for guest, room in ((hall.near, "x"), (hall.there, "x"), (hall.there, "y"), (hall.far, "y")):
        hall.here.do("enter_room", guest.sid, room)
    hall.here.do("emit", "both", room=["x", "y"])
    assert hall.heard() == [NOTHING, [("both",)], [("both",)], [("both",)]]


def test_close_room(hall: Hall) -> None:
    for guest in hall.four:
        guest.do("enter_room", guest.sid, "closing")
    hall.here.do("close_room", "closing")
    hall.here.do("emit", "anybody?", room="closing")
    assert hall.heard() == [NOTHING] * 4


def test_one_client(hall: Hall) -> None:
    hall.here.do("emit", "psst", "you", to=hall.far.sid)
    hall.here.do("emit", "psst", "me", to=hall.here.sid)
    assert hall.heard() == [[("psst", "me")], NOTHING, NOTHING, [("psst", "you")]]


def test_skip_sid(hall: Hall) -> None:
    hall.here.do("emit", "one", skip_sid=hall.there.sid)
    hall.here.do("emit", "two", skip_sid=[hall.near.sid, hall.far.sid])
    one, two = ("one",), ("two",)
    assert hall.heard() == [[one, two], [one], [two], [one]]


def test_namespaces(hall: Hall) -> None:
    visitor = hall.visitor("/other")
    hall.here.do("emit", "elsewhere", namespace="/other")
    assert hall.heard() == [NOTHING] * 4
    assert visitor.heard.get(timeout=20) == ("elsewhere",)
    visitor.do("emit", "back", "here", namespace="/")
    assert hall.heard(hall.there) == [[("back", "here")]] * 4
    assert visitor.heard.empty()


def test_what_a_client_answers_comes_back(hall: Hall) -> None:
    for guest in (hall.near, hall.far):
        answer = hall.here.do("call", "question", "who?", to=guest.sid, timeout=20)
        assert answer == ("who?", guest.worker)


def test_disconnect(hall: Hall) -> None:
    visitor = hall.visitor()
    sid = visitor.sid
    hall.here.do("disconnect", sid)
    # The handler of the worker that has it is called, once.
    left = ("left", [sid, hall.there.worker])
    for guest in hall.four:
        assert guest.heard.get(timeout=20) == left
    wait_until(lambda: not visitor.client.connected, 20, "the visitor to go")
    hall.here.do("emit", "gone?", to=sid)
    assert hall.heard(hall.here, hall.there) == [NOTHING] * 4


def test_nobody_is_reached_twice(hall: Hall) -> None:
    """Many emit at once, in both directions."""
    with ThreadPoolExecutor(4) as crowd:
        list(crowd.map(shout, hall.four))
    for heard in hall.heard(*hall.four):
        shouted = {guest.sid: list(range(25)) for guest in hall.four}
        for sid in shouted:
            assert [event[1][1] for event in heard if event[1][0] == sid] == shouted[sid]
        assert len(heard) == 100


def shout(guest: Guest) -> None:
    for number in range(25):
        guest.do("emit", "shout", [guest.sid, number])
