"""Servers whose workers publish and receive over the bus (tests/apps/bus_echo.py)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness.servers.site import Site, StartSite
from tests.harness.view import STICKY
from tests.harness.waiting import wait_until

PATIENCE_S = 30


class Message(NamedTuple):
    """A message as a worker has received it."""

    pid: int
    thread: int
    number: int
    size: int
    whole: bool


class BusSite:
    """A server, and what its workers publish and hear."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.server, self.view = site.server, site.view

    @property
    def pids(self) -> list[int]:
        return sorted(self.view.pids().values())

    def ask(self, pid: int, path: str, **query: Any) -> Any:
        """Return the answer of that worker. Another that accepts the connection hands it over, or
        does nothing."""
        words = "&".join(f"{name}={value}" for name, value in {**query, "pid": pid}.items())
        slot = next(slot for slot, each in self.view.pids().items() if each == pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            cookie = f"gunicorn_worker={slot}"
            answer = self.server.get(f"/{path}?{words}", cookie=cookie).json()
            if answer["pid"] == pid:
                return answer["said"]
        raise AssertionError(f"worker {pid} never answered")

    def heard(self, pid: int) -> list[Message]:
        return [Message(*each) for each in self.ask(pid, "said")]

    def wait_heard(self, pid: int, count: int) -> list[Message]:
        """Wait until that worker has received `count` messages; return them."""
        heard: list[Message] = []

        def complete() -> bool:
            heard[:] = self.heard(pid)
            return len(heard) >= count

        wait_until(complete, PATIENCE_S, f"{count} messages at {pid}")
        return heard

    def wait_talking(self, pids: list[int], count: int = 50) -> None:
        """Wait until each of the workers has received `count` messages from each other."""

        def complete() -> bool:
            try:
                told = read_chatter(self.site.directory)
            except (KeyError, ValueError):  # one has not begun yet
                return False
            return all(
                len(told[pid].heard.get(other, ())) >= count
                for pid in pids
                for other in pids
                if pid in told and pid != other
            )

        self.server.wait_for(complete, PATIENCE_S, f"{count} messages of each to each")

    def wait_listening(self, count: int) -> None:
        def listen() -> bool:
            return sum(bool(row.words["bus_listens"]) for row in self.view.rows) == count

        self.server.wait_for(listen, PATIENCE_S, f"{count} workers that listen")


def memory_files(pid: int) -> int:
    """Return the number of large messages (memory files) that a process has open."""
    return sum("gunicorn-cluster-bus" in link for link in links(pid))


def links(pid: int) -> list[str]:
    """Return what the open files of a process are."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:  # closed just now
            continue
    return found


def in_order(heard: list[Message]) -> dict[tuple[int, int], list[int]]:
    """Return the numbers of each sender's messages, by its pid and thread, in order of arrival."""
    numbers: dict[tuple[int, int], list[int]] = defaultdict(list)
    for message in heard:
        numbers[message.pid, message.thread].append(message.number)
    return dict(numbers)


class Chatter(NamedTuple):
    """What one worker has written down: when it listened, when it first said something (monotonic,
    in seconds), what it said last, and the numbers that it heard, by sender."""

    listens: float
    begins: float
    said: int
    heard: dict[int, list[int]]


def read_chatter(directory: Path) -> dict[int, Chatter]:
    return {
        int(path.name.removeprefix("chatter-")): _read(path.read_text())
        for path in directory.glob("chatter-*")
    }


def _read(text: str) -> Chatter:
    last: dict[str, str] = {}
    heard: dict[int, list[int]] = defaultdict(list)
    # The last line may be half written.
    for line in text[: text.rfind("\n")].splitlines():
        word, value = line.split(" ", 1)
        last[word] = value
        if word == "heard":
            sender, number = value.split()
            heard[int(sender)].append(int(number))
    return Chatter(
        float(last["listens"]), float(last["begins"]), int(last.get("said", -1)), dict(heard)
    )


class StartBusSite:
    def __init__(self, site: StartSite) -> None:
        self._site = site

    def __call__(self, kind: str = STICKY, what: str = "listen", **settings: Any) -> BusSite:
        """Start a server whose workers subscribe at their start; with "chatter" they publish."""
        in_loops = "asgi" in kind.lower()
        app, name = (
            ("bus_echo_asgi:app", "BUS_ECHO_ASGI") if in_loops else ("bus_echo:app", "BUS_ECHO")
        )
        hooks = f"import os\nos.environ[{name!r}] = {what!r}\n"
        made = BusSite(self._site(app, hooks=hooks, worker_class=kind, **settings))
        if what:
            made.wait_listening(len(made.pids))
        return made


Start = Callable[..., BusSite]
