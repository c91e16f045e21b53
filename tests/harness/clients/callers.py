"""Socket.IO clients of python-socketio that make calls and note who answered."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import socketio  # type: ignore[import-untyped]

PATIENCE_S = 20


@dataclass
class Caller:
    """What one client saw."""

    pids: list[int] = field(default_factory=list)
    workers: list[int | None] = field(default_factory=list)
    error: str | None = None

    @property
    def answers(self) -> int:
        return len(self.pids)


def new_client() -> socketio.Client:
    """Return a client that does not reconnect, which would hide a misrouted request."""
    return socketio.Client(reconnection=False, handle_sigint=False)


def run_callers(
    url: str, clients: int, calls: int, transports: list[str], patience: float = PATIENCE_S
) -> list[Caller]:
    """Connect all clients at once; each stays until the last has had its answers."""
    together = Barrier(clients)

    def run(_: int) -> Caller:
        seen = Caller()
        client = new_client()
        try:
            client.connect(url, transports=transports, wait_timeout=patience)
            for number in range(calls):
                note(seen, number, client.call("call", number, timeout=patience))
        except Exception as error:  # what went wrong is what the test asks for
            seen.error = repr(error)
        together.wait(60)
        client.disconnect()
        return seen

    with ThreadPoolExecutor(clients) as crowd:
        return list(crowd.map(run, range(clients)))


def note(seen: Caller, number: int, answer: dict[str, Any]) -> None:
    if answer["number"] != number:
        raise ValueError(f"asked {number}, got {answer}")
    seen.pids.append(answer["pid"])
    seen.workers.append(answer["worker"])
