"""StickyGevent: what is its own. The rest is tested with every worker class."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.clients.callers import run_callers
from tests.harness.clients.connection import request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.site import StartSite
from tests.harness.view import GEVENT, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

TO = [{"Cookie": f"gunicorn_worker={slot}"} for slot in range(3)]


def test_requests_that_wait_cost_no_thread(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", GEVENT, "-w", "1", wait=False)
    View(server).wait_slots(1)
    with ThreadPoolExecutor(60) as crowd:
        begun = time.monotonic()
        answers = list(crowd.map(lambda _: server.get("/?sleep=3").status, range(60)))
        assert time.monotonic() - begun < 30
    assert answers == [200] * 60
    assert "threads per worker" not in server.log_text()


@pytest.mark.parametrize("loop", ["libev-cext", "libuv-cffi"])
def test_each_loop_of_gevent(gunicorn: StartGunicorn, loop: str) -> None:
    server = gunicorn("whoami:app", "-k", GEVENT, "-w", "3", env={"GEVENT_LOOP": loop})
    view = View(server)
    pids = view.wait_slots(3)
    with server.connect() as connection:
        for _ in range(30):
            for slot, pid in pids.items():
                assert connection.request("GET", "/", TO[slot]).json()["pid"] == pid
    assert view.total("handed_in") >= 89


@pytest.mark.parametrize("transports", [["polling"], ["websocket"], ["polling", "websocket"]])
def test_socketio_in_gevent_mode(gunicorn: StartGunicorn, transports: list[str]) -> None:
    server = gunicorn("chat_gevent:app", "-k", GEVENT, "-w", "4", wait=False)
    view = View(server)
    pids = view.wait_slots(4)
    callers = run_callers(server.url, 16, 10, transports)
    assert [caller.error for caller in callers if caller.error] == []
    assert {caller.answers for caller in callers} == {10}
    assert {len(set(caller.pids)) for caller in callers} == {1}
    # New sessions go to the emptiest: all workers have some.
    assert {pid for caller in callers for pid in caller.pids} == set(pids.values())
    wait_until(lambda: view.total("websockets") == 0, PATIENCE_S, "no WebSockets")


def test_a_configuration_that_has_patched_already(site: StartSite) -> None:
    """Then the arbiter's sockets are gevent's, inboxes too."""
    patched = site(
        "whoami:app",
        hooks="from gevent import monkey\nmonkey.patch_all()\n",
        worker_class=GEVENT,
        cluster_health_path="/",
        cluster_health_interval=0.5,
    )
    with patched.server.connect() as connection:
        for slot, pid in patched.pids.items():
            assert connection.request("GET", "/", TO[slot]).json()["pid"] == pid
        patched.roll()
        for slot, pid in patched.view.pids().items():
            assert connection.request("GET", "/", TO[slot]).json()["pid"] == pid
    assert patched.lines("Traceback") == []


def test_another_worker_class_takes_over(site: StartSite) -> None:
    """gevent's sockets do not block, those of threads do: that goes along with a connection."""
    rolled = site("echo:app", worker_class=GEVENT)
    body = b"in two parts" * 1000
    request = request_bytes("POST", "/", TO[1], body=body)
    with rolled.server.connect() as connection:
        assert connection.request("GET", "/", TO[1]).json()["pid"] == rolled.pids[1]
        for kind in (STICKY, GEVENT):
            rolled.configure(worker_class=kind)
            rolled.roll()
            pids = rolled.view.wait_slots(3)
            connection.send(request[:-5])
            wait_until(lambda: rolled.view.total("busy") == 1, PATIENCE_S, "one in progress")
            connection.send(request[-5:])
            answer = connection.answer().json()
            assert (answer["pid"], answer["sha1"]) == (pids[1], hashlib.sha1(body).hexdigest())


def test_locks_of_before_the_patch(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    """What the pack locks is not held when another greenlet may run."""
    config = f"cluster_store_path = {str(new_directory())!r}\n"
    server = gunicorn("shared_state:app", "-k", GEVENT, "-w", "1", "--preload", config=config)
    (pid,) = View(server).wait_slots(1).values()
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(8)]
        for connection in connections:
            assert connection.get("/").status == 200
        os.kill(pid, signal.SIGSTOP)
        for number, connection in enumerate(connections):
            connection.send(request_bytes("GET", f"/costly?key={number}&sleep=0.5"))
        os.kill(pid, signal.SIGCONT)  # now it finds them all at once
        said = [connection.answer().json()["said"] for connection in connections]
    assert said == [str(number) * 3 for number in range(8)]
