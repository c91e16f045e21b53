"""A steady load on kept-alive connections, by a client that hides nothing.

It never retries, and every end of a connection is counted. One thread with one selector
serves all connections; each asks, waits for the answer, pauses, and asks again.
"""

import heapq
import itertools
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread

from tests.harness.clients.connection import Address, request_bytes
from tests.harness.closing import Closing
from tests.harness.crowding import Crowding
from tests.harness.waiting import wait_until

Request = Callable[[int], bytes]

# Between two looks at what has happened meanwhile: an order to stop, an answer that is due.
_TURN_S = 0.1

_PATIENCE_S = 45
#: How long a request may take, in seconds, while workers are replaced or restarted. On a busy
#: machine some take longer than 0.5 s, but nobody may wait for the end of a second's sleep, which
#: is what a forgotten wake-up would cost.
NOTICED_S = 0.9

_ANYTHING = (request_bytes("GET", "/"),)


@dataclass(frozen=True)
class Failure:
    """A request that got no answer. Times are monotonic."""

    kind: str
    number: int
    sent: float
    at: float
    pid: int | None  # who answered on that connection before, None if nobody did

    def __str__(self) -> str:
        waited = (self.at - self.sent) * 1e3
        return f"request {self.number}: {self.kind} after {waited:.0f} ms (before: {self.pid})"


@dataclass
class Report:
    """What the client has seen so far; it may be read while the load goes on."""

    requests: int = 0
    connections: int = 0
    closes: int = 0  # connections that were closed while no request was under way
    told_to_close: int = 0  # answers that said "Connection: close"
    slowest: float = 0.0  # seconds
    failures: list[Failure] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    pids: Counter[int] = field(default_factory=Counter)
    workers: Counter[int | None] = field(default_factory=Counter)
    crowding: Crowding = field(default_factory=Crowding)

    @property
    def answers(self) -> int:
        return sum(self.statuses.values())

    def complaints(self, slowest: float | None = None) -> list[str]:
        """Return everything that a client of a good server does not see.

        ``slowest`` is how many seconds an answer may take where nothing else runs.
        """
        found = [str(failure) for failure in self.failures]
        if self.closes:
            found.append(f"{self.closes} connections were closed")
        if self.told_to_close:
            found.append(f"{self.told_to_close} answers said Connection: close")
        found += [f"{n} answers {status}" for status, n in self.statuses.items() if status != 200]
        factor = self.crowding.factor
        if slowest is not None and self.slowest > slowest * factor:
            found.append(f"one request took {self.slowest:.3f} s (crowded x{factor:.1f})")
        return found if self.answers else [*found, "nothing was answered"]


@dataclass(eq=False)
class _Client:
    """One connection after the other, with at most one request under way."""

    index: int
    sock: socket.socket | None = None
    data: bytearray = field(default_factory=bytearray)
    number: int = 0
    sent: float | None = None  # None while no request is under way
    pid: int | None = None  # who answered last on this connection


class Load(Closing):
    """The load, in a thread of its own, from `start` to `close`, or as a context.

    `request` makes the bytes of the request with the number that it is given; a sequence is
    shared out to the connections. Answers are JSON with "pid" and "worker", as whoami's; one
    that has an "id" must be the answer to the request with that number.
    A request that is not answered in `patience` seconds is a failure.
    """

    def __init__(
        self,
        address: Address,
        connections: int = 16,
        pause: float = 0.03,
        request: Request | Sequence[bytes] = _ANYTHING,
        patience: float = 20,
    ) -> None:
        self.report = Report()
        self._address = address
        self._pause = pause
        self._request = request
        self._patience = patience
        self._numbers = itertools.count()
        self._clients = [_Client(index) for index in range(connections)]
        self._due: list[tuple[float, int]] = []
        self._selector = selectors.DefaultSelector()
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="load")

    def __enter__(self) -> "Load":
        self.start()
        return self

    def start(self) -> None:
        now, step = time.monotonic(), self._pause / len(self._clients)
        for client in self._clients:
            heapq.heappush(self._due, (now + client.index * step, client.index))
        self._thread.start()

    def close(self) -> None:
        """Send nothing more, wait for what is under way, and close."""
        self._stopping.set()
        self._thread.join()

    def wait_more(self, answers: int = 200) -> None:
        """Let the load go on for a while."""
        enough = self.report.answers + answers
        wait_until(lambda: self.report.answers >= enough, _PATIENCE_S, f"{answers} more answers")

    # --- in the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._stopping.is_set() or self._under_way():
            for key, _ in self._selector.select(self._until_next()):
                self._read(key.data)
            if not self._stopping.is_set():
                self._send_due()
            if time.monotonic() - looked > _TURN_S:
                looked = time.monotonic()
                self._give_up(looked)
                self.report.crowding.look()
        for client in self._clients:
            self._close(client)
        self._selector.close()

    def _under_way(self) -> bool:
        return any(client.sent is not None for client in self._clients)

    def _until_next(self) -> float:
        if not self._due or self._stopping.is_set():
            return _TURN_S
        return min(max(self._due[0][0] - time.monotonic(), 0), _TURN_S)

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, index = heapq.heappop(self._due)
            self._send(self._clients[index])

    def _send(self, client: _Client) -> None:
        client.number = next(self._numbers)
        # Connecting is part of the request: who does not come in is not served.
        client.sent = time.monotonic()
        self.report.requests += 1
        try:
            if client.sock is None:
                self._connect(client)
            assert client.sock is not None
            client.sock.sendall(self._bytes(client))
        except OSError as error:
            self._fail(client, type(error).__name__)

    def _bytes(self, client: _Client) -> bytes:
        if callable(self._request):
            return self._request(client.number)
        return self._request[client.index % len(self._request)]

    def _connect(self, client: _Client) -> None:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        made = socket.socket(family)
        try:
            made.settimeout(self._patience)
            made.connect(self._address)
            if family == socket.AF_INET:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            made.close()
            raise
        client.sock = made
        self._selector.register(made, selectors.EVENT_READ, client)
        self.report.connections += 1

    def _read(self, client: _Client) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(65536)
        except OSError as error:
            self._ended(client, type(error).__name__)
            return
        if not data:
            self._ended(client, "closed within the answer" if client.data else "closed")
        elif client.sent is None:
            self._fail(client, "an answer to no request")
        else:
            client.data += data
            self._parse(client)

    def _parse(self, client: _Client) -> None:
        try:
            answer = _parse(client.data)
        except (ValueError, KeyError, IndexError):
            self._fail(client, f"unparsable answer {bytes(client.data[:200])!r}")
            return
        if answer is not None and answer.id not in (None, str(client.number)):
            self._fail(client, f"the answer to request {answer.id}")
        elif answer is not None:
            client.pid = answer.pid
            self._note(client, answer)

    def _note(self, client: _Client, answer: "_Answer") -> None:
        assert client.sent is not None
        report, now = self.report, time.monotonic()
        report.statuses[answer.status] += 1
        report.pids[answer.pid] += 1
        report.workers[answer.worker] += 1
        report.slowest = max(report.slowest, now - client.sent)
        client.sent = None
        client.data.clear()
        if answer.closes:
            report.told_to_close += 1
            self._close(client)
        heapq.heappush(self._due, (now + self._pause, client.index))

    def _ended(self, client: _Client, how: str) -> None:
        if client.sent is not None:
            self._fail(client, how)
        else:
            # Its next request, which is due already, goes on a new connection.
            self.report.closes += 1
            self._close(client)

    def _fail(self, client: _Client, kind: str) -> None:
        now = time.monotonic()
        sent = now if client.sent is None else client.sent
        self.report.failures.append(Failure(kind, client.number, sent, now, client.pid))
        if client.sent is not None:
            heapq.heappush(self._due, (now + self._pause, client.index))
        self._close(client)

    def _give_up(self, now: float) -> None:
        for client in self._clients:
            if client.sent is not None and now - client.sent > self._patience:
                self._fail(client, "no answer")

    def _close(self, client: _Client) -> None:
        if client.sock is not None:
            self._selector.unregister(client.sock)
            client.sock.close()
        client.sock = client.sent = client.pid = None
        client.data.clear()


@dataclass(frozen=True)
class _Answer:
    status: int
    pid: int
    worker: int | None
    id: str | None
    closes: bool


def _parse(data: bytearray) -> _Answer | None:
    """Return the answer in `data`, if it is complete. Raise ValueError, KeyError or IndexError."""
    head, found, body = bytes(data).partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    fields = {name.lower(): value.strip() for name, _, value in pairs}
    length = int(fields["content-length"])
    if len(body) > length:
        raise ValueError("more than one answer")
    if len(body) < length:
        return None
    closes = fields.get("connection", "").lower() == "close"
    who = json.loads(body) if body.startswith(b"{") else {}
    status = int(first.split(" ", 2)[1])
    return _Answer(status, who.get("pid", 0), who.get("worker"), who.get("id"), closes)
