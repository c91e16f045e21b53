"""The example of server-sent events: every client hears what is said to any worker."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests

from gunicorn_cluster_ext.runtime.board.layout import State
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

WORKERS = 4
CLIENTS = 12
STICKY_ASGI = "gunicorn_cluster_ext.StickyASGI"


class Stream:
    """One client's EventSource."""

    def __init__(self, response: requests.Response) -> None:
        self._lines = response.iter_lines(chunk_size=1)
        name, self.worker = next(self.events())
        assert name == "welcome"

    def events(self) -> Iterator[tuple[str, Any]]:
        """Their names and data."""
        name = "message"
        for line in self._lines:
            field, _, value = line.decode().partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)
                name = "message"

    def hear(self, count: int) -> list[str]:
        """The texts of the next messages."""
        texts = []
        for _, data in self.events():
            texts.append(data["text"])
            if len(texts) == count:
                break
        return texts


@contextmanager
def listening(server: Gunicorn) -> Iterator[Stream]:
    with requests.get(f"{server.url}/events", stream=True, timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield Stream(response)


def say(server: Gunicorn, text: str) -> None:
    with requests.post(f"{server.url}/say", data=text.encode(), timeout=30) as answer:
        assert answer.status_code == 204


def listen(stack: ExitStack, server: Gunicorn, clients: int, workers: int) -> list[Stream]:
    """So many clients at least, of so many workers."""
    streams: list[Stream] = []

    def enough() -> bool:
        streams.append(stack.enter_context(listening(server)))
        return len(streams) >= clients and len({each.worker for each in streams}) >= workers

    wait_until(enough, 30, f"clients of {workers} workers")
    return streams


def test_every_client_hears_what_is_said_to_any_worker(gunicorn: StartGunicorn) -> None:
    server = gunicorn("sse:app", "-k", STICKY_ASGI, "-w", str(WORKERS))
    View(server).wait_slots(WORKERS)
    assert "EventSource" in server.get("/").body.decode()
    said = [f"message {number} \u20ac" for number in range(20)]
    with ExitStack() as stack:
        streams = listen(stack, server, CLIENTS, workers=2)
        for text in said:
            say(server, text)
        for stream in streams:
            assert sorted(stream.hear(len(said))) == sorted(said)


def test_streams_go_on_while_the_server_rolls(gunicorn: StartGunicorn) -> None:
    """Old processes and new ones hear each other."""
    config = "cluster_drain_timeout = 20\n"
    server = gunicorn("sse:app", "-k", STICKY_ASGI, "-w", str(WORKERS), config=config)
    view = View(server)
    view.wait_slots(WORKERS)
    with ExitStack() as stack:
        streams = listen(stack, server, CLIENTS, workers=2)
        server.signal(signal.SIGHUP)
        view.wait_roll(1)
        streams += listen(stack, server, 3, workers=1)
        assert State.DRAINING in {row.state for row in view.rows}
        for number in range(5):
            say(server, f"{number}")
        for stream in streams:
            assert sorted(stream.hear(5)) == [f"{number}" for number in range(5)]
    view.wait_slots(WORKERS, generation=2)
