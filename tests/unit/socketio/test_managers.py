"""The client managers in one process: when transports are chosen, and how values travel."""

import asyncio
import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from queue import Queue
from typing import Any

import pytest
import socketio  # type: ignore[import-untyped]
from socketio import pubsub_manager

from gunicorn_cluster_ext.runtime import context
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.socketio import AsyncClusterManager, ClusterManager, bus_transport
from gunicorn_cluster_ext.stores.contract import StoreError
from tests.harness.forks import in_child, in_fresh_interpreter

REDIS = Settings(store="redis://127.0.0.1:1/0", store_timeout=0.2)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a server's settings with the embedded store; forget a test's transports after it."""
    monkeypatch.setattr(context, "_server_settings", Settings())
    yield
    bus_transport.local.forget()


def server(manager: Any, **options: Any) -> socketio.Server:
    return socketio.Server(async_mode="threading", client_manager=manager, **options)


# --- processes ------------------------------------------------------------------------------


def test_each_process_has_a_name_of_its_own() -> None:
    """Or workers of a preloaded application would take each other's messages for their own."""
    manager = ClusterManager()
    name = manager.host_id
    names = {in_child(lambda: manager.host_id) for _ in range(2)}
    assert len(names | {name}) == 3
    assert manager.host_id == name


def test_a_server_that_is_made_opens_nothing() -> None:
    """It may be made before a fork: threads and sockets are opened for the first client."""
    code = """
import os, threading
before = sorted(os.listdir("/proc/self/fd"))
import socketio
from gunicorn_cluster_ext.socketio import AsyncClusterManager, ClusterManager
socketio.Server(async_mode="threading", client_manager=ClusterManager())
socketio.AsyncServer(async_mode="asgi", client_manager=AsyncClusterManager())
print(threading.active_count(), sorted(os.listdir("/proc/self/fd")) == before)
"""
    assert in_fresh_interpreter(code) == "1 True"


def test_a_client_is_not_there_before_its_process_listens() -> None:
    """Clients connect in threads, and must miss nothing that is emitted after that."""
    manager = ClusterManager("first")
    subject = server(manager)
    listening, may_go_on = threading.Event(), threading.Event()
    start_background_task = subject.start_background_task

    def slowly(*args: Any) -> Any:
        listening.set()
        assert may_go_on.wait(10)
        return start_background_task(*args)

    subject.start_background_task = slowly
    with ThreadPoolExecutor(2) as pool:
        pool.submit(manager.initialize)
        assert listening.wait(10)
        second = pool.submit(manager.connect, "an eio sid", "/")
        with pytest.raises(TimeoutError):
            second.result(0.2)
        may_go_on.set()
        assert manager.is_connected(second.result(10), "/")


# --- over the bus -----------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int


class Json:
    """A JSON module that a server is given in place of the standard one."""

    @staticmethod
    def dumps(value: Any, **options: Any) -> str:
        return json.dumps(value, default=dataclasses.asdict, **options)

    loads = staticmethod(json.loads)


def heard(channel: str) -> "Queue[bytes]":
    """Return the queue of another manager of this process with that channel."""
    listener = ClusterManager(channel)
    server(listener)
    listener._transport.start()
    queue: Queue[bytes] = listener._transport._queue
    return queue


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text \ud800",
        b"\0\xff",
        2**70,
        [1, {"a": [b"x"]}],
        {1: 2},
        ("two", "values"),
        datetime.datetime(2026, 11, 22, tzinfo=datetime.timezone.utc),
    ],
)
def test_values_are_what_they_were(value: Any) -> None:
    """python-socketio before 5.14 leaves bytes and tuples in ``data``."""
    queue = heard("values")
    ClusterManager("values", write_only=True)._publish({"method": "emit", "data": value})
    assert bus_transport.decode(queue.get_nowait()) == {"method": "emit", "data": value}


def test_what_only_the_servers_json_knows() -> None:
    queue = heard("json")
    manager = ClusterManager("json")
    server(manager, json=Json)
    manager._publish({"method": "emit", "data": [Point(3)]})
    assert bus_transport.decode(queue.get_nowait())["data"] == [{"x": 3}]


def test_what_nobody_knows() -> None:
    with pytest.raises(TypeError, match=r"object is not JSON serializable|Object of type object"):
        ClusterManager(write_only=True).emit("event", object())


def test_managers_of_one_process_hear_each_other_by_channel() -> None:
    """A task that runs in a worker may use a write-only manager there."""
    one, other = heard("one"), heard("other")
    ClusterManager("one", write_only=True).emit("event", "text")
    assert bus_transport.decode(one.get_nowait())["event"] == "event"
    assert one.empty() and other.empty()


def test_an_event_loop_is_told_by_other_threads() -> None:
    async def listen() -> Any:
        manager = AsyncClusterManager("loop")
        socketio.AsyncServer(async_mode="asgi", client_manager=manager)
        manager._transport.start()
        writer = ClusterManager("loop", write_only=True)
        await asyncio.to_thread(writer.emit, "event", "text")
        return await asyncio.wait_for(anext(manager._listen()), 10)

    for _ in range(2):  # the second time there is also a closed loop
        assert asyncio.run(listen())["event"] == "event"


def test_what_is_initialized_before_the_loop_runs_hears_in_the_loop() -> None:
    manager = AsyncClusterManager("early")
    socketio.AsyncServer(async_mode="asgi", client_manager=manager)
    manager._transport.start()

    async def listen() -> Any:
        first = asyncio.ensure_future(anext(manager._listen()))
        await asyncio.sleep(0)  # it begins to listen
        writer = ClusterManager("early", write_only=True)
        await asyncio.to_thread(writer.emit, "event", "text")
        return await asyncio.wait_for(first, 10)

    assert asyncio.run(listen())["event"] == "event"


def test_a_handler_that_hangs_costs_messages_but_no_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus_transport, "MAX_QUEUED", 3)
    queue = heard("full")
    writer = ClusterManager("full", write_only=True)
    for number in range(5):
        writer.emit(str(number), None)
    assert [bus_transport.decode(queue.get_nowait())["event"] for _ in range(3)] == ["0", "1", "2"]
    assert queue.empty()
    assert caplog.text.count("A Socket.IO message is lost") == 1


# --- through a Redis --------------------------------------------------------------------------


def test_old_versions_would_read_pickles_from_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_server_settings", REDIS)
    monkeypatch.setattr(pubsub_manager, "pickle", None, raising=False)
    for manager in (ClusterManager(), AsyncClusterManager()):
        with pytest.raises(StoreError, match=r"python-socketio before 5.14"):
            server(manager)
    with pytest.raises(StoreError, match=r"python-socketio before 5.14"):
        ClusterManager(write_only=True).emit("event", "text")


def test_a_redis_that_is_away_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with python-socketio's managers, an emit does not raise."""
    monkeypatch.setattr(context, "_server_settings", REDIS)
    ClusterManager(write_only=True).emit("event", "text")
    assert "Cannot publish to redis... giving up" in caplog.text


# --- Flask-SocketIO ---------------------------------------------------------------------------


def test_flask_socketio_outside_of_workers() -> None:
    from flask_socketio import SocketIO  # type: ignore[import-untyped]

    queue = heard("flask")
    manager = ClusterManager("flask", write_only=True)
    SocketIO(message_queue=None, client_manager=manager).emit("event", "text", to="room")
    message = bus_transport.decode(queue.get_nowait())
    assert (message["event"], message["data"], message["room"]) == ("event", ["text"], "room")


def test_flask_socketio_prefers_the_manager_to_a_message_queue() -> None:
    from flask import Flask
    from flask_socketio import SocketIO

    manager = ClusterManager()
    socket = SocketIO(Flask(__name__), client_manager=manager, message_queue="redis://nowhere")
    assert socket.server.manager is manager
