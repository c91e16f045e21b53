"""A reload in the middle of a conversation: nobody misses anything while connected."""

import json
import time
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from gunicorn_cluster_ext.runtime.board.layout import State
from tests.harness.clients.crowd import BOTH, SERVERS
from tests.harness.clients.guests import Client
from tests.harness.programs import StartNode
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

DRAIN_S = 15
#: A call whose connection is lost waits until then.
ANSWER_S = 3


def new_client() -> Client:
    """One that connects again by itself."""
    return Client(handle_sigint=False, reconnection_delay=0.1, reconnection_delay_max=0.3)


class Listener:
    """The numbers that a client hears, by session."""

    def __init__(self, site: Site, transport: str, at_exit: ExitStack) -> None:
        self.sessions: list[list[int]] = []
        #: When each began.
        self.began: list[float] = []
        self.client = new_client()
        self.client.on("connect", self._begin)
        self.client.on("number", lambda number: self.sessions[-1].append(number))
        self._where = {"url": site.server.url, "transports": [transport]}
        self.come()
        at_exit.callback(self.client.shutdown)

    def come(self) -> None:
        self.client.connect(**self._where, wait_timeout=PATIENCE_S)

    def _begin(self) -> None:
        self.sessions.append([])
        self.began.append(time.monotonic())

    def has_heard(self, number: int, session: int) -> bool:
        return len(self.sessions) == session and self.sessions[-1][-1:] >= [number]


class Speaker:
    """A client that says numbers to all, each when the last has been acknowledged."""

    def __init__(self, site: Site, at_exit: ExitStack) -> None:
        self.number = 0
        #: Said while the connection was lost: nobody knows whether its worker has heard it.
        self.unsure: set[int] = set()
        self._client = new_client()
        self._client.connect(site.server.url, transports=["polling"], wait_timeout=PATIENCE_S)
        self._over = Event()
        self._thread = Thread(target=self._run)
        self._thread.start()
        at_exit.callback(self.stop)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                order = ("emit", ["number", self.number], {})
                self._client.call("do", order, timeout=ANSWER_S)
            except Exception:
                self.unsure.add(self.number)
            self.number += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._client.shutdown()


def wait_heard(listeners: list[Listener], speaker: Speaker, session: int) -> None:
    """Until each has heard, in that session, something that is said from now on."""
    number = speaker.number + 10

    def all_have() -> bool:
        return all(listener.has_heard(number, session) for listener in listeners)

    wait_until(all_have, PATIENCE_S, f"number {number} in session {session}")


def wait_said(speaker: Speaker, more: int) -> None:
    number = speaker.number + more
    wait_until(lambda: speaker.number > number, PATIENCE_S, f"number {number} to be said")


@pytest.mark.parametrize("worker", SERVERS)
def test_a_reload_during_a_conversation(worker: str, site: StartSite, at_exit: ExitStack) -> None:
    app, worker_class = SERVERS[worker]
    settings = {"cluster_drain_timeout": DRAIN_S, "cluster_roll_surge": 3, "threads": 50}
    talk = site(app, worker_class=worker_class, **settings)
    listeners = [Listener(talk, transport, at_exit) for transport in BOTH * 4]
    speaker = Speaker(talk, at_exit)
    wait_heard(listeners, speaker, session=1)

    begun = time.monotonic()
    talk.roll()
    # Their processes have been replaced. They have not noticed.
    assert State.DRAINING in {row.state for row in talk.view.rows}
    wait_heard(listeners, speaker, session=1)

    # Some leave, and come back to the new processes. Those who stay still hear who speaks.
    leavers, stayers = listeners[:2], listeners[2:]
    for leaver in leavers:
        leaver.client.disconnect()
        leaver.come()
    wait_heard(leavers, speaker, session=2)
    assert all(len(stayer.sessions) == 1 for stayer in stayers)

    # In the end they have to go, and connect again by themselves.
    talk.view.wait_slots(3, generation=2)
    wait_heard(listeners, speaker, session=2)
    speaker.stop()
    for stayer in stayers:
        # StickyASGI keeps the last second for the goodbye of WebSockets.
        assert stayer.began[1] > begun + DRAIN_S - 1
    check_heard([listener.sessions for listener in listeners], speaker)


def check_heard(listeners: list[list[list[int]]], speaker: Speaker) -> None:
    """In a session nothing is missed, or heard twice."""
    for sessions in listeners:
        assert len(sessions) == 2
        for heard in sessions:
            assert heard == sorted(set(heard))
            missed = set(range(heard[0], heard[-1])) - set(heard)
            assert missed <= speaker.unsure
    assert len(speaker.unsure) < speaker.number / 2


@pytest.mark.parametrize("transport", BOTH)
def test_the_official_client_connects_again_by_itself(
    transport: str, site: StartSite, node: StartNode, at_exit: ExitStack
) -> None:
    app, worker_class = SERVERS["thread"]
    settings = {"cluster_drain_timeout": 3, "cluster_roll_surge": 3, "threads": 50}
    talk = site(app, worker_class=worker_class, **settings)
    speaker = Speaker(talk, at_exit)
    plan = {"clients": 4, "transport": transport, "enough": 10}
    listeners = node("listen.js", talk.server.url, json.dumps(plan))
    talk.view.wait_total("sessions", 5)
    wait_said(speaker, 30)
    talk.roll()
    check_heard(listeners.result(PATIENCE_S), speaker)
