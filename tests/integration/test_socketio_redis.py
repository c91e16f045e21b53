"""With a queue between the workers, what one broadcasts reaches the clients of all."""

from collections.abc import Callable
from contextlib import ExitStack
from queue import Queue
from typing import Any

import socketio  # type: ignore[import-untyped]

from tests.conftest import StartGunicorn, StartRedis
from tests.harness.callers import PATIENCE_S, new_client
from tests.harness.gunicorn import Gunicorn
from tests.harness.waiting import wait_until

MOST_CLIENTS = 48


class Guest:
    """A client in the chat, with the worker it is on and what it hears."""

    def __init__(self, url: str) -> None:
        self.client: socketio.Client = new_client()
        self.heard: Queue[dict[str, Any]] = Queue()
        self.client.on("said", self.heard.put)
        self.client.connect(url, transports=["polling"], wait_timeout=PATIENCE_S)
        self.worker = self.client.call("call", 0, timeout=PATIENCE_S)["worker"]


def join_until(
    enough: Callable[[list[Guest]], bool], server: Gunicorn, at_exit: ExitStack
) -> list[Guest]:
    guests: list[Guest] = []

    def join() -> bool:
        assert len(guests) < MOST_CLIENTS, [guest.worker for guest in guests]
        guests.append(Guest(server.url))
        at_exit.callback(guests[-1].client.disconnect)
        return enough(guests)

    wait_until(join, 60, "guests on every worker")
    return guests


def test_a_broadcast_reaches_the_clients_of_all_workers(
    gunicorn: StartGunicorn, redis: StartRedis, at_exit: ExitStack
) -> None:
    queue = redis()
    server = gunicorn(
        "chat:app",
        *("-k", "gunicorn_cluster_ext.Sticky", "-w", "4"),
        serving=4,
        env={"CHAT_REDIS": queue.url},
    )
    guests = join_until(lambda all: len({each.worker for each in all}) == 4, server, at_exit)
    # A worker subscribes in the background, after its first client has connected.
    wait_until(lambda: queue.subscribers("flask-socketio") == 4, 10, "all workers to listen")

    guests[0].client.emit("say", "hello")
    for guest in guests:
        assert guest.heard.get(timeout=PATIENCE_S) == {"text": "hello", "worker": guests[0].worker}


def test_without_a_queue_it_stays_on_its_worker(
    gunicorn: StartGunicorn, at_exit: ExitStack
) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)

    def near_and_far(all: list[Guest]) -> bool:
        workers = [each.worker for each in all]
        return len(set(workers)) > 1 and workers.count(workers[0]) > 1

    guests = join_until(near_and_far, server, at_exit)
    guests[0].client.emit("say", "hello")
    near = [guest for guest in guests if guest.worker == guests[0].worker]
    for guest in near:
        assert guest.heard.get(timeout=PATIENCE_S)["text"] == "hello"
    # What the far ones have heard by the time of another answer is all they will hear.
    for guest in guests:
        if guest not in near:
            guest.client.call("call", 1, timeout=PATIENCE_S)
            assert guest.heard.empty()
