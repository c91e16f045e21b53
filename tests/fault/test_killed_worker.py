"""Workers that stop, die, are full or are replaced, and what their clients see of it."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.harness.clients.connection import Answer, Connection, request_bytes
from tests.harness.closing import Closing
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import EVERY_KIND, PATIENCE_S, View
from tests.harness.waiting import wait_until

pytestmark = EVERY_KIND

COOKIE = "gunicorn_worker"
# Long enough that gunicorn does not kill a worker that a test has stopped.
ARGS = ("--threads", "8", "--keep-alive", "60", "--timeout", "120")


def cookie(slot: int) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={slot}"}


def sid(slot: int, generation: int) -> str:
    return f"/?EIO=4&sid=abc.{slot}.{generation}"


def only_from(server: Gunicorn, slot: int) -> Connection:
    """A connection that is with the worker `slot` now."""
    connection = server.connect(timeout=90)
    assert connection.request("GET", "/", cookie(slot)).json()["worker"] == slot
    return connection


@pytest.fixture
def stopped() -> Iterator[Callable[[int], None]]:
    """Stops processes; those that still live afterwards go on."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", PATIENCE_S, "a stopped process")

    yield stop
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- SIGSTOP -------------------------------------------------------------------------------


def test_who_stands_still_is_given_nothing_that_others_can_serve(
    sticky: StartGunicorn, stopped: Callable[[int], None]
) -> None:
    server = sticky("whoami:app", "-w", "2", *ARGS, wait=False)
    view = View(server)
    stopped(view.wait_slots(2)[0])
    wait_until(lambda: len(view.loads()) == 1, PATIENCE_S, "it to be found out")
    handed = view.total("handed_out")
    for _ in range(10):  # each goes to the emptiest, which the stopped one would seem to be
        with server.connect(timeout=PATIENCE_S) as connection:
            assert connection.request("GET", "/?EIO=4&transport=polling").json()["worker"] == 1
    assert view.total("handed_out") == handed


# --- SIGKILL -------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["cookie", "sid"])
def test_what_is_queued_for_a_killed_worker_is_served_by_its_replacement(
    sticky: StartGunicorn, stopped: Callable[[int], None], tag: str
) -> None:
    server = sticky("whoami:app", "-w", "3", *ARGS, wait=False)
    view = View(server)
    before = view.wait_slots(3)
    queued = 12
    with ExitStack() as stack:
        connections = [stack.enter_context(only_from(server, 0)) for _ in range(queued)]
        handed = view.total("handed_out")
        stopped(before[1])
        for connection in connections:
            if tag == "cookie":
                connection.send(request_bytes("POST", "/", cookie(1), body=b"body"))
            else:
                connection.send(request_bytes("POST", sid(1, 1), body=b"body"))
        view.wait_total("handed_out", handed + queued)
        os.kill(before[1], signal.SIGKILL)
        answers = [connection.answer().json() for connection in connections]
        after = view.wait_slots(3)
        assert {(who["worker"], who["pid"]) for who in answers} == {(1, after[1])}
        assert after[1] != before[1]
        assert view.generations() == {0: 1, 1: 2, 2: 1}
        # The connections are good for more.
        for connection in connections:
            assert connection.request("GET", "/", cookie(1)).json()["pid"] == after[1]


def test_several_killed_at_once(sticky: StartGunicorn, stopped: Callable[[int], None]) -> None:
    """Their replacements come one after the other; nobody else takes what waits for them."""
    server = sticky("whoami:app", "-w", "4", *ARGS, wait=False)
    view = View(server)
    before = view.wait_slots(4)
    with ExitStack() as stack:
        connections = [stack.enter_context(only_from(server, 0)) for _ in range(12)]
        handed = view.total("handed_out")
        for slot in (1, 2, 3):
            stopped(before[slot])
        for number, connection in enumerate(connections):
            connection.send(request_bytes("GET", "/", cookie(number % 3 + 1)))
        view.wait_total("handed_out", handed + len(connections))
        for slot in (1, 2, 3):
            os.kill(before[slot], signal.SIGKILL)
        answers = [connection.answer().json()["worker"] for connection in connections]
        assert answers == [number % 3 + 1 for number in range(len(connections))]
    view.wait_slots(4)


@dataclass
class Try:
    """One request of a client, and how it ended."""

    name: str
    slot: int
    error: str | None = None


class Crowd(Closing):
    """Clients that ask all the time, each for one worker, on a new connection each time."""

    def __init__(self, server: Gunicorn, clients: int, slots: int) -> None:
        self.tries: list[Try] = []
        self._server = server
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number, number % slots))
            for number in range(clients)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int, slot: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            tried = Try(f"{client}-{number}", slot)
            try:
                answer = self._request(tried)
                if answer.status != 200 or answer.json()["id"] != tried.name:
                    tried.error = f"{answer.status} {answer.body!r}"
            except OSError as error:
                tried.error = repr(error)
            self.tries.append(tried)

    def _request(self, tried: Try) -> Answer:
        headers = {**cookie(tried.slot), "Connection": "close"}
        with self._server.connect(timeout=60) as connection:
            return connection.request("GET", f"/?id={tried.name}&sleep=0.05", headers)

    @property
    def failed(self) -> list[Try]:
        return [tried for tried in self.tries if tried.error]

    def wait_more(self, count: int) -> None:
        goal = len(self.tries) + count
        wait_until(lambda: len(self.tries) >= goal, PATIENCE_S, f"{count} more requests")


def test_only_what_a_killed_worker_executes_fails(sticky: StartGunicorn) -> None:
    server = sticky("request_log:app", "-w", "4", *ARGS, wait=False)
    view = View(server)
    pids = view.wait_slots(4)
    killed: set[int] = set()
    with Crowd(server, clients=12, slots=4) as crowd:
        for slot in (1, 3, 1):
            crowd.wait_more(60)
            generation = view.generations()[slot]
            killed.add(view.pids()[slot])
            os.kill(view.pids()[slot], signal.SIGKILL)
            wait_until(
                lambda slot=slot, generation=generation: (
                    view.generations().get(slot, 0) > generation
                ),
                PATIENCE_S,
                "a replacement",
            )
        crowd.wait_more(60)
    after = view.wait_slots(4)
    assert (after[0], after[2]) == (pids[0], pids[2])
    begun: dict[str, set[int]] = {}
    for line in (server.directory / "diary.txt").read_text().splitlines():
        what, name, pid = line.split()
        if what == "begun":
            begun.setdefault(name, set()).add(int(pid))
    for tried in crowd.failed:
        # Nothing but the end of the process was the reason,
        assert "closed" in str(tried.error) or "Reset" in str(tried.error), tried
        # and no request that failed was in another process.
        assert begun.get(tried.name, set()) <= killed, tried
    # What the dead had accepted but not begun is as lost: a moment's worth for each.
    assert len([tried for tried in crowd.failed if tried.name not in begun]) <= 3 * len(killed)
    assert len(crowd.tries) > 200
    assert len(crowd.failed) <= 3 * (8 + 3)
    # No request was executed twice.
    assert all(len(where) == 1 for where in begun.values())


def test_idle_connections_of_siblings_survive(sticky: StartGunicorn) -> None:
    server = sticky("whoami:app", "-w", "3", *ARGS, wait=False)
    view = View(server)
    pids = view.wait_slots(3)
    with ExitStack() as stack:
        connections = {slot: stack.enter_context(only_from(server, slot)) for slot in range(3)}
        os.kill(pids[1], signal.SIGKILL)
        assert connections[1].closed_by_peer()
        for slot in (0, 2):
            answer = connections[slot].request("GET", "/", cookie(slot))
            assert answer.json()["pid"] == pids[slot]
        wait_until(lambda: view.generations().get(1) == 2, PATIENCE_S, "a new worker 1")
        # The old connections reach the new worker.
        for slot in (0, 2):
            assert connections[slot].request("GET", "/", cookie(1)).json()["worker"] == 1


# --- full inboxes --------------------------------------------------------------------------

# More than an inbox takes (278 were counted).
MANY = 700


@dataclass
class Full:
    """A server whose worker 1 is stopped, with requests under way to it."""

    server: Gunicorn
    view: View
    pid: int
    connections: list[Connection]

    def wait_full(self) -> None:
        wait_until(lambda: self.view.total("inbox_full") > 0, PATIENCE_S, "a full inbox")

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def fill(
    sticky: StartGunicorn, stopped: Callable[[int], None], at_exit: ExitStack
) -> Callable[..., Full]:
    def start(target: str, headers: dict[str, str], config: str = "") -> Full:
        server = sticky("whoami:app", "-w", "3", *ARGS, config=config, wait=False)
        view = View(server)
        pid = view.wait_slots(3)[1]
        connections = []
        stopped(pid)
        for _ in range(MANY):
            connection = at_exit.enter_context(server.connect(timeout=90))
            connection.send(request_bytes("GET", target, {**headers, "Connection": "close"}))
            connections.append(connection)
        full = Full(server, view, pid, connections)
        full.wait_full()
        return full

    return start


def test_soft_affinity_does_not_wait_for_a_full_inbox(fill: Callable[..., Full]) -> None:
    full = fill("/", cookie(1))
    # Those that find no room are served by others at once, though worker 1 stands still.
    refused = full.view.wait_total("inbox_full", 50)
    wait_until(lambda: len(served(full.connections)) >= refused, PATIENCE_S, "their answers")
    elsewhere = served(full.connections)
    for connection in elsewhere:
        answer = connection.answer()
        assert (answer.status, answer.json()["worker"] in (0, 2)) == (200, True)
    full.go_on()
    queued = [connection for connection in full.connections if connection not in elsewhere]
    assert len(queued) > 50
    assert {connection.answer().json()["worker"] for connection in queued} <= {0, 1, 2}
    assert full.view.slots()[1].words["handed_in"] > 50
    check_calm(full)


def served(connections: list[Connection]) -> list[Connection]:
    """Those whose answer is there."""
    readable, _, _ = select.select([connection.socket for connection in connections], [], [], 0)
    return [connection for connection in connections if connection.socket in readable]


def check_calm(full: Full) -> None:
    """Everybody has been served, nobody waits, and every worker is as good as new."""
    wait_until(lambda: full.view.total("connections") == 0, PATIENCE_S, "no connections")
    for slot in range(3):
        assert full.server.get("/", cookie=f"{COOKIE}={slot}").json()["worker"] == slot
    assert full.view.pids()[1] == full.pid
    assert "Traceback" not in full.server.log_text()


def test_hard_affinity_is_refused_when_there_is_no_room_in_time(fill: Callable[..., Full]) -> None:
    full = fill(sid(1, 1), {}, config="cluster_handoff_timeout = 1\n")
    refused = full.view.total("inbox_full")
    wait_until(lambda: len(served(full.connections)) > 100, PATIENCE_S, "refusals")
    full.go_on()
    answers = [connection.answer() for connection in full.connections]
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(503) > 100 and refused > 0
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["Connection"] == "close"
        else:
            assert answer.json()["worker"] == 1
    check_calm(full)


def test_hard_affinity_waits_until_there_is_room(fill: Callable[..., Full]) -> None:
    full = fill(sid(1, 1), {}, config="cluster_handoff_timeout = 90\n")
    # Nobody else answers, and others are served meanwhile.
    assert full.server.get("/", cookie=f"{COOKIE}=2").json()["worker"] == 2
    assert served(full.connections) == []
    full.go_on()
    answers = [connection.answer() for connection in full.connections]
    assert {answer.status for answer in answers} == {200}
    assert {answer.json()["worker"] for answer in answers} == {1}
    check_calm(full)


def test_hard_affinity_to_a_process_that_dies_meanwhile(fill: Callable[..., Full]) -> None:
    """What waits for room goes to the slot's present process, as what is queued does."""
    full = fill(sid(1, 1), {}, config="cluster_handoff_timeout = 90\n")
    os.kill(full.pid, signal.SIGKILL)
    answers = [connection.answer() for connection in full.connections]
    assert {answer.status for answer in answers} == {200}
    new = full.view.wait_slots(3)[1]
    workers = {(answer.json()["worker"], answer.json()["pid"]) for answer in answers}
    # While slot 1 has no process that serves, its requests are anybody's.
    assert (1, new) in workers
    assert full.pid not in {pid for _, pid in workers}


def test_clients_that_give_up_while_they_wait(fill: Callable[..., Full]) -> None:
    full = fill(sid(1, 1), {}, config="cluster_handoff_timeout = 90\n")
    for connection in full.connections:
        connection.close()
    full.go_on()
    check_calm(full)


# --- nobody is left behind -----------------------------------------------------------------


def files_of(pids: Iterable[int]) -> list[int]:
    """How many files each process has open."""
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def wait_no_more_files(pids: list[int], before: list[int]) -> None:
    def no_more() -> bool:
        return all(now <= then for now, then in zip(files_of(pids), before, strict=True))

    try:
        wait_until(no_more, PATIENCE_S, f"no more open files than {before}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {files_of(pids)}") from None


def test_2_000_hand_offs_leave_no_files_open(sticky: StartGunicorn) -> None:
    server = sticky("whoami:app", "-w", "4", *ARGS, wait=False)
    view = View(server)
    pids = view.wait_slots(4)

    def hand_over(turns: int) -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(10)]
            for turn in range(turns):
                for number, connection in enumerate(connections):
                    slot = (turn + number) % 4
                    connection.send(request_bytes("POST", f"/{turn}", cookie(slot), body=b"b"))
                for number, connection in enumerate(connections):
                    who = connection.answer().json()
                    assert (who["worker"], who["path"]) == ((turn + number) % 4, f"/{turn}")

    def calm() -> bool:
        return view.total("connections") == 0 and view.total("busy") == 0

    hand_over(4)
    wait_until(calm, PATIENCE_S, "no connections")
    before, handed = files_of(pids.values()), view.total("handed_in")
    hand_over(210)
    assert view.total("handed_in") - handed >= 2_000
    wait_until(calm, PATIENCE_S, "no connections")
    wait_no_more_files(list(pids.values()), before)
    assert view.total("handed_in") == view.total("handed_out")
    assert view.pids() == pids


def test_hand_offs_of_clients_that_leave_no_files_open(sticky: StartGunicorn) -> None:
    """Clients close, half-close and reset while their connection is on its way."""
    server = sticky("whoami:app", "-w", "4", *ARGS, wait=False)
    view = View(server)
    pids = view.wait_slots(4)

    def calm() -> bool:
        return view.total("connections") == 0 and view.total("busy") == 0

    for slot in range(4):  # each opens what it keeps
        assert server.get("/", cookie=f"{COOKIE}={slot}").status == 200
    wait_until(calm, PATIENCE_S, "no connections")
    before = files_of(pids.values())
    for number in range(300):
        connection = server.connect()
        for slot in (0, 1, 2, 3):
            connection.send(request_bytes("GET", "/", cookie(slot)))
        if number % 3 == 1:
            connection.socket.shutdown(socket.SHUT_WR)
        elif number % 3 == 2:
            connection.answer()
        connection.close()
    wait_until(calm, PATIENCE_S, "no connections")
    wait_no_more_files(list(pids.values()), before)
    assert "Traceback" not in server.log_text()


# --- HUP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_idle_connections_survive_a_reload(sticky: StartGunicorn, workers: int) -> None:
    server = sticky("whoami:app", "-w", str(workers), *ARGS, wait=False)
    view = View(server)
    before = view.wait_slots(workers)
    with ExitStack() as stack:
        idle = [stack.enter_context(only_from(server, n % workers)) for n in range(9)]
        fresh = [stack.enter_context(server.connect()) for _ in range(4)]
        for generation in (2, 3):
            server.signal(signal.SIGHUP)
            after = view.wait_slots(workers, generation=generation)
            assert not set(after.values()) & set(before.values())
            before = after
            for number, connection in enumerate(idle):
                slot = number % workers
                answer = connection.request("GET", "/", cookie(slot))
                assert answer.json()["pid"] == after[slot]
                assert answer.headers["Connection"] != "close"
        # They had not said anything before.
        for connection in fresh:
            assert connection.get("/").json()["pid"] in after.values()


def test_connections_in_use_survive_a_reload(sticky: StartGunicorn) -> None:
    """A client that asks again and again notices nothing, unless it is told to close."""
    server = sticky("whoami:app", "-w", "3", *ARGS, wait=False)
    view = View(server)
    view.wait_slots(3)
    over = threading.Event()
    failed: list[str] = []
    counts = [0] * 6

    def ask(client: int) -> None:
        connection = server.connect(timeout=60)
        try:
            while not over.is_set():
                answer = connection.request("GET", "/?sleep=0.01", cookie(client % 3))
                assert answer.status == 200
                counts[client] += 1
                if answer.headers["Connection"] == "close":
                    connection.close()
                    connection = server.connect(timeout=60)
        except (AssertionError, OSError) as error:
            failed.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    try:
        for generation in (2, 3):
            wait_until(lambda: min(counts) > 10 or failed, PATIENCE_S, "some requests")
            server.signal(signal.SIGHUP)
            view.wait_slots(3, generation=generation)
            counts[:] = [0] * len(counts)
        wait_until(lambda: min(counts) > 10 or failed, PATIENCE_S, "some requests")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []


def test_half_a_head_survives_a_reload(sticky: StartGunicorn) -> None:
    server = sticky(
        "whoami:app", "-w", "2", *ARGS, config="cluster_head_timeout = 60\n", wait=False
    )
    view = View(server)
    view.wait_slots(2)
    get = request_bytes("GET", "/half", cookie(1))
    with server.connect(timeout=60) as connection:
        connection.send(get[:30])
        wait_until(lambda: view.total("connections") == 1, PATIENCE_S, "the connection")
        server.signal(signal.SIGHUP)
        wait_until(lambda: set(view.generations().values()) == {2}, PATIENCE_S, "new workers")
        begun = time.monotonic()
        connection.send(get[30:])
        assert connection.answer().json()["path"] == "/half"
        assert time.monotonic() - begun < 30
    view.wait_slots(2, generation=2)


def test_idle_connections_of_a_worker_that_goes_move_to_a_sibling(sticky: StartGunicorn) -> None:
    """max_requests, TERM of one worker, TTOU: somebody else takes them over."""
    server = sticky("whoami:app", "-w", "3", *ARGS, wait=False)
    view = View(server)
    pids = view.wait_slots(3)
    with ExitStack() as stack:
        idle = [stack.enter_context(only_from(server, 2)) for _ in range(5)]
        server.signal(signal.SIGTTOU)
        assert view.wait_slots(2) == {0: pids[0], 1: pids[1]}
        for connection in idle:
            assert connection.request("GET", "/", cookie(2)).json()["worker"] in (0, 1)
        os.kill(pids[1], signal.SIGTERM)
        wait_until(lambda: view.generations().get(1) == 2, PATIENCE_S, "a new worker 1")
        for connection in idle:
            assert connection.get("/").status == 200


def test_a_lonely_worker_leaves_its_idle_connections_to_its_replacement(
    sticky: StartGunicorn,
) -> None:
    """Nobody else is there to take them while it finishes, and waiting costs no processor time."""
    server = sticky("whoami:app", "-w", "1", *ARGS, wait=False)
    view = View(server)
    pid = view.wait_slots(1)[0]
    with server.connect(timeout=60) as slow, ExitStack() as stack:
        idle = [stack.enter_context(only_from(server, 0)) for _ in range(5)]
        slow.send(request_bytes("GET", "/?sleep=3"))
        wait_until(lambda: view.total("busy") == 1, PATIENCE_S, "a request in progress")
        process, begun = psutil.Process(pid), time.monotonic()
        used = process.cpu_times()
        os.kill(pid, signal.SIGTERM)
        assert readable(slow, 60)
        taken = [sum(times[:2]) for times in (process.cpu_times(), used)]
        assert taken[0] - taken[1] < 0.3 * (time.monotonic() - begun)
        assert slow.answer().json()["pid"] == pid
        for connection in idle:
            answer = connection.get("/")
            assert (answer.status, answer.json()["worker"]) == (200, 0)
    assert view.wait_slots(1, generation=2)[0] != pid


def readable(connection: Connection, seconds: float) -> bool:
    ready, _, _ = select.select([connection.socket], [], [], seconds)
    return bool(ready)
