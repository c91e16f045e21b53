"""Socket.IO clients that tell a remote-controlled server (tests/apps) what to do."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from typing import Any
from uuid import uuid4

import engineio  # type: ignore[import-untyped]
import socketio  # type: ignore[import-untyped]

from tests.harness.clients.callers import PATIENCE_S
from tests.harness.waiting import wait_until

MOST = 48
END = "the end"
# A client that was not scheduled for a while finds more in its poll than it would take.
engineio.payload.Payload.max_decode_packets = 1_000


class InOrder(engineio.Client):  # type: ignore[misc]
    """A client that handles messages in order; the base class starts a thread for each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._handler = ThreadPoolExecutor(1)

    def _trigger_event(self, event: str, *args: Any, **options: Any) -> Any:
        if options.get("run_async"):
            return self._handler.submit(self.handlers[event], *args)
        return super()._trigger_event(event, *args, **options)

    def _reset(self) -> None:
        """Close the WebSocket, too, when the server has ended the connection."""
        if self.ws is not None:
            self.ws.shutdown()
        super()._reset()


class Client(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[InOrder]:
        return InOrder


class Guest:
    """One client, the worker it is on, and what it has heard."""

    def __init__(self, url: str, transport: str, namespace: str = "/", path: str = "socket.io"):
        self.namespace = namespace
        self.heard: Queue[tuple[Any, ...]] = Queue()
        # One that connects again would hide a request that went astray.
        self.client = Client(reconnection=False, handle_sigint=False)
        self.client.on("*", lambda *event: self.heard.put(event), namespace=namespace)
        self.client.on("question", lambda text: (text, self.worker), namespace=namespace)
        self.client.connect(
            url,
            transports=[transport],
            namespaces=[namespace],
            socketio_path=path,
            wait_timeout=PATIENCE_S,
        )
        self.worker = self.client.call("where", namespace=namespace, timeout=PATIENCE_S)

    @property
    def sid(self) -> str:
        return str(self.client.get_sid(self.namespace))

    def do(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Have the worker call a method of its Socket.IO server; return the result."""
        order = (method, list(arguments), options)
        return self.client.call("do", order, namespace=self.namespace, timeout=PATIENCE_S)

    def until(self, end: str, senders: int = 1) -> list[tuple[Any, ...]]:
        """Return all events that arrive before so many senders have said `end`."""
        heard = []
        while senders:
            event = self.heard.get(timeout=PATIENCE_S)
            if event[0] != END:
                heard.append(event)
            elif event[1] == end:
                senders -= 1
        return heard


class Guests:
    """Clients that use the given transports in turn."""

    def __init__(self, url: str, transports: Sequence[str], at_exit: ExitStack) -> None:
        self._url = url
        self._transports = transports
        self._at_exit = at_exit
        self.all: list[Guest] = []

    def invite(self, transport: str | None = None, **options: Any) -> Guest:
        by_turn = self._transports[len(self.all) % len(self._transports)]
        guest = Guest(self._url, transport or by_turn, **options)
        self._at_exit.callback(guest.client.disconnect)
        self.all.append(guest)
        return guest

    def invite_until(self, enough: Callable[[list[Guest]], bool], **options: Any) -> list[Guest]:
        def invited() -> bool:
            assert len(self.all) < MOST, [guest.worker for guest in self.all]
            self.invite(**options)
            return enough(self.all)

        wait_until(invited, 60, "guests where they are wanted")
        return self.all


def hear_all(guests: Sequence[Guest], senders: Sequence[Guest]) -> list[list[tuple[Any, ...]]]:
    """Return what each guest has heard until all senders have said END."""
    end = str(uuid4())
    for sender in senders:
        sender.do("emit", END, end, namespace=sender.namespace)
    return [guest.until(end, len(senders)) for guest in guests]


def wait_introduced(guests: Sequence[Guest], senders: Sequence[Guest]) -> None:
    """Wait until each guest hears each sender, some time after a Redis has come back."""
    known: list[set[int]] = [set() for _ in guests]

    def introduced() -> bool:
        for sender in senders:
            sender.do("emit", "hello", sender.worker)
        for guest, names in zip(guests, known, strict=True):
            while not guest.heard.empty():
                names.add(guest.heard.get()[1])
        return all(names >= {sender.worker for sender in senders} for names in known)

    wait_until(introduced, 20, "all guests to hear all senders")
    hear_all(guests, senders)
