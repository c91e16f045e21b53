"""The bus between processes that share a board, without gunicorn."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gunicorn_cluster_ext import bus, logs
from gunicorn_cluster_ext.bus import framing
from gunicorn_cluster_ext.runtime import context, counters
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import Word
from gunicorn_cluster_ext.runtime.directory import bus_socket
from gunicorn_cluster_ext.settings import Settings
from tests.harness.forks import in_child, in_fresh_interpreter, spawn, status_of
from tests.harness.waiting import wait_until

PATIENCE_S = 10
LARGE = 300_000


class Cluster:
    """Workers that share a board, each a child process of the test."""

    def __init__(self, directory: Path) -> None:
        self.board = Board.create(4, directory / "board")
        self._pids: dict[int, int] = {}

    @property
    def directory(self) -> Path:
        assert self.board.path is not None
        return self.board.path.parent

    def join(self, seat: int, generation: int = 1, **settings: Any) -> None:
        """Make this process the worker in `seat`."""
        self.board.clear(seat, generation, 0)
        context.join(Settings(**settings), self.board, seat)

    def ask(self, work: Callable[[], Any], seat: int = 0, **settings: Any) -> Any:
        """Return what `work` returns in a new process, the worker in `seat`."""

        def run() -> Any:
            self.join(seat, **settings)
            return work()

        return in_child(run)

    def start(self, seat: int, generation: int = 1) -> int:
        """Start a worker that subscribes and reads until it is killed; return its pid."""

        def run() -> None:
            self.join(seat, generation)
            mute()
            signal.pause()

        self._pids[seat] = spawn(run)
        wait_until(lambda: self.listens(seat) == generation, PATIENCE_S, f"seat {seat} to listen")
        return self._pids[seat]

    def listens(self, seat: int) -> int:
        return self.board.get(seat, Word.BUS_LISTENS)

    def reach(self, step: int) -> None:
        """Tell all processes how far the test is, also one that can open no more files."""
        self.board.target = step

    def wait_step(self, step: int) -> None:
        wait_until(lambda: self.board.target >= step, PATIENCE_S, f"step {step}")

    def count(self, seat: int, word: int) -> int:
        return self.board.get(seat, word)

    def wait_received(self, seat: int, count: int) -> None:
        def came() -> bool:
            return self.count(seat, Word.BUS_RECEIVED) >= count

        wait_until(came, PATIENCE_S, f"{count} messages in seat {seat}")

    def kill(self, seat: int) -> None:
        pid = self._pids.pop(seat)
        os.kill(pid, signal.SIGKILL)
        status_of(pid)

    def close(self) -> None:
        for seat in list(self._pids):
            self.kill(seat)


@pytest.fixture
def cluster(new_directory: Callable[[], Path]) -> Iterator[Cluster]:
    made = Cluster(new_directory())
    yield made
    made.close()


class Subscriber:
    """Records the messages of a channel, and the threads in which it was called."""

    def __init__(self, channel: str = "news") -> None:
        self.heard: list[bytes] = []
        self.threads: set[str] = set()
        self.end = bus.subscribe(channel, self)

    def __call__(self, message: bytes) -> None:
        self.heard.append(message)
        self.threads.add(threading.current_thread().name)

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.heard) >= count, PATIENCE_S, f"{count} messages")


def mute() -> None:
    """Subscribe, and discard the messages."""
    bus.subscribe("news", lambda message: None)


# --- who hears what ---------------------------------------------------------------------------


def test_all_others_hear_and_the_publisher_does_not(cluster: Cluster) -> None:
    cluster.start(2)
    cluster.start(4)

    def publish() -> Any:
        subscriber = Subscriber()
        return bus.publish("news", b"x"), len(subscriber.heard)

    assert cluster.ask(publish) == [2, 0]
    cluster.wait_received(2, 1)
    cluster.wait_received(4, 1)


def test_without_listeners_a_message_goes_nowhere_and_costs_no_socket(cluster: Cluster) -> None:
    def publish() -> Any:
        before = os.listdir("/proc/self/fd")
        sent = bus.publish("news", bytes(LARGE))
        return sent, os.listdir("/proc/self/fd") == before, threading.active_count()

    assert cluster.ask(publish) == [0, True, 1]


def publish_when_asked(cluster: Cluster, *messages: bytes) -> Callable[[], None]:
    """Return what a worker in seat 2 does: publish once seat 0 listens, then subscribe as well."""

    def work() -> None:
        wait_until(lambda: cluster.listens(0), PATIENCE_S, "somebody to listen")
        for message in messages:
            bus.publish("news", message)
        mute()

    return work


def hear(cluster: Cluster, listen: Callable[[], Any], *messages: bytes) -> Any:
    """Return what `listen` returns in a worker while another publishes `messages`."""
    teller = spawn(lambda: (cluster.join(2), publish_when_asked(cluster, *messages)()))
    try:
        return cluster.ask(listen)
    finally:
        status_of(teller)


def test_messages_come_in_order_in_a_thread_of_the_bus(cluster: Cluster) -> None:
    def listen() -> Any:
        subscriber = Subscriber()
        subscriber.wait(3)
        return [message[:9].decode() for message in subscriber.heard], list(subscriber.threads)

    heard = hear(cluster, listen, b"a", b"b" * LARGE, b"c")
    assert heard == [["a", "b" * 9, "c"], ["bus"]]


def test_only_those_of_the_channel(cluster: Cluster) -> None:
    def listen() -> Any:
        other, subscriber = Subscriber("other"), Subscriber()
        subscriber.wait(1)
        return len(other.heard)

    assert hear(cluster, listen, b"a") == 0


def test_several_subscribers_of_one_channel_each_hear_it(cluster: Cluster) -> None:
    def listen() -> Any:
        subscribers = [Subscriber(), Subscriber()]
        for subscriber in subscribers:
            subscriber.wait(1)
        return [len(subscriber.heard) for subscriber in subscribers]

    assert hear(cluster, listen, b"a") == [1, 1]


def test_a_subscriber_that_fails_is_logged_and_the_others_go_on(cluster: Cluster) -> None:
    def listen() -> Any:
        log = Log()
        bus.subscribe("news", lambda message: 1 / 0)
        bus.subscribe("news", lambda message: exit(1))
        subscriber = Subscriber()
        subscriber.wait(2)
        return [line.split(":")[0] for line in log.lines]

    assert hear(cluster, listen, b"a", b"b") == ["A bus subscriber failed"] * 4


def test_who_has_ended_all_subscriptions_hears_nothing_until_the_next(cluster: Cluster) -> None:
    cluster.start(2)

    def listen() -> Any:
        first, second = Subscriber(), Subscriber("other")
        seen = [cluster.listens(0)]
        first.end()
        seen.append(cluster.listens(0))
        second.end()
        second.end()
        seen.append(cluster.listens(0))
        Subscriber()
        return [*seen, cluster.listens(0)]

    assert cluster.ask(listen) == [1, 1, 0, 1]


def test_a_worker_that_ends_says_that_it_hears_no_more(cluster: Cluster) -> None:
    def listen() -> None:
        mute()
        bus._endpoints.receiver.close()  # at exit; `spawn` ends without that

    cluster.ask(listen)
    assert not cluster.listens(0)
    assert [path.name for path in cluster.directory.iterdir()] == ["board"]


# --- event loops ------------------------------------------------------------------------------


def test_in_an_event_loop_it_is_called_there_and_there_is_no_thread(cluster: Cluster) -> None:
    async def listen() -> Any:
        subscriber = Subscriber()
        while len(subscriber.heard) < 2:
            await asyncio.sleep(0.01)
        return list(subscriber.threads), threading.active_count()

    assert hear(cluster, lambda: asyncio.run(listen()), b"a", b"b") == [["MainThread"], 1]


def test_who_subscribes_in_another_loop_is_called_there(cluster: Cluster) -> None:
    """A thread, or another loop, reads the links."""

    async def listen() -> Any:
        subscriber = Subscriber()
        while not subscriber.heard:
            await asyncio.sleep(0.01)
        return list(subscriber.threads)

    def both() -> Any:
        first = Subscriber()
        answer = asyncio.run(listen())
        first.wait(1)
        return answer

    assert hear(cluster, both, b"a") == ["MainThread"]


def test_when_its_loop_has_ended_the_next_subscriber_reads_the_links(cluster: Cluster) -> None:
    async def listen() -> Subscriber:
        subscriber = Subscriber()
        while not subscriber.heard:
            await asyncio.sleep(0.01)
        return subscriber

    def listen_twice() -> Any:
        asyncio.run(listen()).end()
        subscriber = Subscriber()
        cluster.reach(1)
        subscriber.wait(1)
        return list(subscriber.threads)

    def tell() -> None:
        cluster.join(2)
        publish_when_asked(cluster, b"a")()
        cluster.wait_step(1)
        bus.publish("news", b"b")

    teller = spawn(tell)
    assert cluster.ask(listen_twice) == ["bus"]
    assert status_of(teller) == 0


def test_what_a_loop_that_has_ended_left_is_delivered_to_the_next_subscriber(
    cluster: Cluster,
) -> None:
    heard = []

    def take(message: bytes) -> None:
        heard.append(message)
        time.sleep(0.02)  # longer than a turn

    async def listen() -> None:
        bus.subscribe("news", take)
        while not heard:
            await asyncio.sleep(0)

    def listen_twice() -> Any:
        asyncio.run(listen())
        left = 20 - len(heard)
        subscriber = Subscriber()
        subscriber.wait(left)
        return left > 0, len(subscriber.heard) == left

    assert hear(cluster, listen_twice, *[b"x"] * 20) == [True, True]


def test_an_event_loop_breathes_between_many_messages(cluster: Cluster) -> None:
    """The messages arrive at once, and each takes a millisecond."""

    async def listen() -> Any:
        heard, longest, last = 0, 0.0, time.monotonic()

        def take(message: bytes) -> None:
            nonlocal heard
            heard += 1
            time.sleep(0.001)

        bus.subscribe("news", take)
        while heard < 500:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest

    assert hear(cluster, lambda: asyncio.run(listen()), *[b"x"] * 500) < 0.25


# --- senders and receivers that fail ----------------------------------------------------------


def test_a_worker_that_was_killed_is_no_error_and_its_successor_hears(cluster: Cluster) -> None:
    cluster.start(2)

    def publish() -> Any:
        before = bus.publish("news", b"a")
        cluster.reach(1)
        cluster.wait_step(2)
        return before, bus.publish("news", b"c")

    with ThreadPoolExecutor() as threads:
        answer = threads.submit(cluster.ask, publish)
        cluster.wait_step(1)
        cluster.kill(2)
        assert cluster.listens(2) == 1, "nobody has reaped it"
        assert cluster.ask(lambda: bus.publish("news", b"b"), seat=4) == 0
        cluster.start(2, generation=2)
        cluster.reach(2)
        assert answer.result() == [1, 1]
    cluster.wait_received(2, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "of "),
        (framing.frame("??", 1).replace(b"??", b"\xff\xff"), "that cannot be decoded: 'utf-8' "),
    ],
)
def test_bytes_of_a_stranger_end_its_link_only(cluster: Cluster, data: bytes, why: str) -> None:
    def listen() -> Any:
        log, subscriber = Log(), Subscriber()
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(bus_socket(cluster.directory, 0, 1)))
            stranger.sendall(data)
            assert stranger.recv(1) == b""
        cluster.reach(1)
        subscriber.wait(1)
        return log.lines, counters.bus_lost.value

    def tell() -> None:
        cluster.join(2)
        cluster.wait_step(1)
        bus.publish("news", b"a")

    teller = spawn(tell)
    (line,), lost = cluster.ask(listen)
    assert line.startswith(f"The bus closes a sender's link: a frame {why}") and lost == 1
    assert status_of(teller) == 0


def use_up_files() -> None:
    """Leave this process no file to open, also below the largest descriptor that it has."""
    most = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    with contextlib.suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


def test_a_large_message_for_which_there_is_no_open_file_is_counted_and_logged(
    cluster: Cluster,
) -> None:
    def listen() -> Any:
        log, subscriber = Log(), Subscriber()
        subscriber.wait(1)  # the link is open
        use_up_files()
        cluster.reach(1)
        subscriber.wait(2)
        return [len(message) for message in subscriber.heard], log.lines, counters.bus_lost.value

    def tell() -> None:
        cluster.join(2)
        publish_when_asked(cluster, b"a")()
        cluster.wait_step(1)
        bus.publish("news", bytes(LARGE))
        bus.publish("news", b"bc")

    teller = spawn(tell)
    sizes, lines, lost = cluster.ask(listen)
    assert (sizes, lost) == ([1, 2], 1)
    (line,) = lines
    assert f"A bus message of {LARGE} bytes was lost" in line and "ulimit -n" in line
    assert status_of(teller) == 0


def test_a_sender_waits_for_a_receiver_without_open_files(cluster: Cluster) -> None:
    def listen() -> Any:
        log, subscriber = Log(), Subscriber()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        use_up_files()
        cluster.reach(1)
        wait_until(lambda: log.lines, PATIENCE_S, "a complaint")
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        subscriber.wait(1)
        return log.lines[0]

    def tell() -> None:
        cluster.join(2)
        cluster.wait_step(1)
        assert bus.publish("news", b"a") == 1

    teller = spawn(tell)
    assert cluster.ask(listen).startswith("The bus cannot accept a sender's link, and tries again")
    assert status_of(teller) == 0


class NoThread:
    """Makes the first start of a thread fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._start, self.calls = threading.Thread.start, 0
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self(thread))

    def __call__(self, thread: threading.Thread) -> None:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("can't start new thread")
        self._start(thread)


def test_a_receiver_without_a_thread_is_started_by_the_next_subscriber(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen() -> Any:
        NoThread(monkeypatch)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Subscriber()
        nobody = cluster.listens(0)
        subscriber = Subscriber()
        subscriber.wait(1)
        return nobody, list(subscriber.threads)

    assert hear(cluster, listen, b"a") == [0, ["bus"]]


def test_a_publisher_without_a_thread_starts_it_with_the_next_message(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = cluster.start(2)

    def publish() -> Any:
        log, sent = Log(), 0
        threads = NoThread(monkeypatch)
        stop(stopped)
        while threads.calls < 2:
            sent += bus.publish("news", bytes(60_000))
        os.kill(stopped, signal.SIGCONT)
        cluster.wait_received(2, sent)
        return log.lines

    (line,) = cluster.ask(publish)
    assert line.startswith("The bus cannot start a thread, and tries again later: can't start")


# --- workers that do not read -----------------------------------------------------------------


def test_a_worker_that_is_stopped_holds_up_only_once_and_what_it_loses_is_counted(
    cluster: Cluster,
) -> None:
    stopped = cluster.start(2)
    cluster.start(4)

    def publish() -> Any:
        log, times, sent = Log(), [], []
        stop(stopped)
        for _ in range(300):
            begun = time.monotonic()
            sent.append(bus.publish("news", bytes(60_000)))
            times.append(time.monotonic() - begun)
        slow = [each for each in times if each > 0.2]
        os.kill(stopped, signal.SIGCONT)
        cluster.wait_received(2, sent.count(2))
        wait_until(lambda: len(log.lines) == 2, PATIENCE_S, "two lines")
        sent.append(bus.publish("news", b"again"))
        return slow, sent, log.lines, counters.bus_lost.value

    slow, sent, lines, lost = cluster.ask(publish, bus_timeout=0.5)
    assert len(slow) == 1 and 0.5 <= slow[0] < 1.5
    assert sent.count(1) == lost > 0
    assert sent == [*sorted(sent[:-1], reverse=True), 2]
    name = "Worker 1 (generation 1)"
    assert lines == [
        f"{name} does not read the bus: messages to it are lost from now on",
        f"{name} reads the bus again: {lost} messages to it were lost",
    ]
    cluster.wait_received(2, sent.count(2))
    cluster.wait_received(4, len(sent))


def test_large_messages_to_one_that_is_stopped_take_a_few_open_files_only(
    cluster: Cluster,
) -> None:
    stopped = cluster.start(2)

    def publish() -> Any:
        before = len(os.listdir("/proc/self/fd"))
        stop(stopped)
        sent = [bus.publish("news", bytes(1 << 20)) for _ in range(30)]
        during = len(os.listdir("/proc/self/fd"))
        os.kill(stopped, signal.SIGCONT)
        cluster.wait_received(2, sum(sent))
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, PATIENCE_S, "fewer")
        return sum(sent), during - before

    sent, files = cluster.ask(publish, bus_timeout=0.2)
    assert sent == 8
    assert files <= 9


def test_without_time_to_wait_it_is_lost_at_once(cluster: Cluster) -> None:
    stopped = cluster.start(2)

    def publish() -> Any:
        stop(stopped)
        begun = time.monotonic()
        sent = [bus.publish("news", bytes(1 << 20)) for _ in range(30)]
        return sent.count(0) > 0, time.monotonic() - begun

    lost, seconds = cluster.ask(publish, bus_timeout=0)
    assert lost and seconds < 0.5


def test_an_event_loop_goes_on_while_a_message_waits(cluster: Cluster) -> None:
    stopped = cluster.start(2)

    async def publish() -> Any:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        task = asyncio.create_task(count())
        stop(stopped)
        begun = time.monotonic()
        while await bus.apublish("news", bytes(1 << 20)):
            pass
        task.cancel()
        return turns, time.monotonic() - begun

    turns, seconds = cluster.ask(lambda: asyncio.run(publish()))
    assert 1 <= seconds < 3
    assert turns > 50


def test_what_is_kept_for_the_dead_is_thrown_away(cluster: Cluster) -> None:
    stopped = cluster.start(2)

    def publish() -> Any:
        before = len(os.listdir("/proc/self/fd"))
        stop(stopped)
        for _ in range(20):
            bus.publish("news", bytes(200_000))
        during = len(os.listdir("/proc/self/fd"))
        cluster.reach(1)
        wait_until(lambda: threading.active_count() == 1, PATIENCE_S, "the end of the thread")
        return during - before, len(os.listdir("/proc/self/fd")) - before

    with ThreadPoolExecutor() as threads:
        answer = threads.submit(cluster.ask, publish)
        cluster.wait_step(1)
        cluster.kill(2)
        during, after = answer.result()
    assert during > 10
    assert after == 0


def test_a_process_that_ends_passes_on_what_is_kept(cluster: Cluster) -> None:
    stopped = cluster.start(2)

    def publish() -> None:
        stop(stopped)
        for _ in range(100):
            bus.publish("news", bytes(60_000))
        threading.Timer(0.2, os.kill, (stopped, signal.SIGCONT)).start()
        bus._endpoints.publisher.close()  # at exit; `in_child` ends without that

    cluster.ask(publish)
    cluster.wait_received(2, 100)


# --- other processes --------------------------------------------------------------------------


def test_a_process_that_a_worker_has_forked_is_another_one(cluster: Cluster) -> None:
    def other() -> None:
        with pytest.raises(bus.BusError, match="only a worker can subscribe"):
            Subscriber()
        bus.publish("news", b"from the child")

    def listen() -> Any:
        subscriber = Subscriber()
        child = spawn(other)
        subscriber.wait(1)
        return status_of(child)

    assert cluster.ask(listen) == 0


def test_outside_a_worker_nobody_can_subscribe() -> None:
    with pytest.raises(bus.BusError, match="only a worker can subscribe to the bus"):
        bus.subscribe("news", print)


def test_without_a_server_there_is_nothing_to_publish_to(
    new_directory: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus._endpoints, "_choice", bus._Choice())
    with pytest.raises(bus.BusError, match=r"no server found .*GUNICORN_CLUSTER_DIR"):
        bus.connect(directory=str(new_directory()))
    with pytest.raises(bus.BusError, match="no server found with the pid 1 "):
        bus.connect(pid=1, directory=str(new_directory()))
    with pytest.raises(bus.BusError, match="no pid in the pid file /nowhere"):
        bus.connect(pidfile="/nowhere")


def test_a_server_without_a_directory_has_no_bus() -> None:
    def publish() -> Any:
        context.join(Settings(), Board.create(2), 0)
        with pytest.raises(bus.BusError, match="set cluster_dir"):
            bus.publish("news", b"")
        with pytest.raises(bus.BusError, match="set cluster_dir"):
            Subscriber()

    in_child(publish)


def test_a_directory_that_is_too_long_is_said(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 100)
    directory.mkdir()

    def listen() -> Any:
        Cluster(directory).join(0)
        with pytest.raises(bus.BusError, match="cluster_dir is too long"):
            Subscriber()

    in_child(listen)


def test_importing_it_imports_no_event_loop_and_starts_nothing() -> None:
    loaded = in_fresh_interpreter(
        "import sys, threading, gunicorn_cluster_ext.bus\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'asyncio', 'gevent', 'gunicorn'}), threading.active_count())"
    )
    assert loaded == "[] 1"


def stop(pid: int) -> None:
    """Stop a process; return when it runs no more."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == "T", PATIENCE_S, "a stopped process")


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Log:
    """Records what is logged from now on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        logs.log.addHandler(handler)
