"""The client managers in processes of every kind: preloaded, late, replaced, and no workers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.harness.clients.crowd import BOTH
from tests.harness.clients.guests import Guest, Guests, hear_all
from tests.harness.programs import StartGunicorn, StartRedis
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.site import StartSite
from tests.harness.view import STICKY

pytestmark = pytest.mark.one_gunicorn


def on_workers(count: int) -> Callable[[list[Guest]], bool]:
    return lambda all: len({guest.worker for guest in all}) == count


def check_talk(guests: Guests) -> None:
    """What each says all hear, once."""
    for guest in guests.all:
        guest.do("emit", "from", guest.worker)
    everything = sorted(("from", guest.worker) for guest in guests.all)
    for heard in hear_all(guests.all, guests.all):
        assert sorted(heard) == everything


@pytest.mark.parametrize("store", ["bus", "redis"])
def test_a_preloaded_application(
    store: str, gunicorn: StartGunicorn, redis: StartRedis, at_exit: ExitStack
) -> None:
    """All workers are copies of what the arbiter has imported."""
    env = {"GUNICORN_CLUSTER_STORE": redis().url} if store == "redis" else {}
    server = gunicorn(
        "remote_controlled:app", "-k", STICKY, "-w", "2", "--preload", serving=2, env=env
    )
    guests = Guests(server.url, BOTH, at_exit)
    guests.invite_until(on_workers(2))
    check_talk(guests)


def test_one_worker_then_more_then_a_new_one(site: StartSite, at_exit: ExitStack) -> None:
    served = site("remote_controlled:app", workers=1, threads=50)
    guests = Guests(served.server.url, BOTH, at_exit)
    guests.invite()
    check_talk(guests)

    served.server.signal(signal.SIGTTIN)
    served.view.wait_slots(2)
    guests.invite_until(on_workers(2))
    check_talk(guests)

    os.kill(served.view.pids()[1], signal.SIGKILL)
    served.view.wait_generation(1, 2)
    guests.all = [guest for guest in guests.all if guest.worker == 0]
    guests.invite_until(on_workers(2))
    check_talk(guests)


@pytest.mark.parametrize("store", ["bus", "redis"])
def test_a_worker_without_clients_hears_what_others_answer(
    store: str, gunicorn: StartGunicorn, redis: StartRedis, at_exit: ExitStack
) -> None:
    """It serves a request, say, that asks somebody else's client."""
    env = {"GUNICORN_CLUSTER_STORE": redis().url} if store == "redis" else {}
    server = gunicorn("remote_controlled:app", "-k", STICKY, "-w", "2", serving=2, env=env)
    guest = Guests(server.url, BOTH, at_exit).invite()
    other = 1 - guest.worker
    answer = server.get(f"/{guest.sid}", cookie=f"gunicorn_worker={other}")
    assert answer.json() == [other, ["who?", guest.worker]]


def test_several_servers_in_each_process(gunicorn: StartGunicorn, at_exit: ExitStack) -> None:
    server = gunicorn("remote_controlled_several:app", "-k", STICKY, "-w", "2", serving=2)
    mine, twins, others = (Guests(server.url, BOTH, at_exit) for _ in range(3))
    for guests, path in ((mine, "socket.io"), (twins, "twin"), (others, "other")):
        guests.invite_until(on_workers(2), path=path)
    sender = mine.all[0]
    sender.do("emit", "news")
    for heard in hear_all([*mine.all, *twins.all], [sender]):
        assert heard == [("news",)]
    # Nothing waits for them: by the time of an answer they would have heard it.
    for guest in others.all:
        guest.client.call("where", timeout=20)
        assert guest.heard.empty()


# --- no workers -------------------------------------------------------------------------------

WRITE = """
from gunicorn_cluster_ext.socketio import ClusterManager
manager = ClusterManager(write_only=True)
manager.emit("news", {"bytes": len("x" * 300_000), "text": "x" * 300_000}, room="readers")
manager.emit("more", ("two", "values"))
"""
WRITE_ASYNC = """
import asyncio
from gunicorn_cluster_ext.socketio import AsyncClusterManager
async def main():
    manager = AsyncClusterManager(write_only=True)
    text = "x" * 300_000
    await manager.emit("news", {"bytes": len(text), "text": text}, room="readers")
    await manager.emit("more", ("two", "values"))
asyncio.run(main())
"""
STRAY = """
import socketio
from gunicorn_cluster_ext.socketio import ClusterManager
socketio.Server(async_mode="threading", client_manager=ClusterManager()).emit("stray", "text")
"""


def run(code: str, server: Gunicorn, store: dict[str, str]) -> str:
    """What a process that is none of the server's prints, and logs."""
    env = {**os.environ, "GUNICORN_CLUSTER_DIR": str(server.directory), **store}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("code", [WRITE, WRITE_ASYNC])
@pytest.mark.parametrize("store", ["bus", "redis"])
def test_another_process_reaches_the_clients_of_all_workers(
    code: str, store: str, gunicorn: StartGunicorn, redis: StartRedis, at_exit: ExitStack
) -> None:
    env = {"GUNICORN_CLUSTER_STORE": redis().url} if store == "redis" else {}
    server = gunicorn("remote_controlled:app", "-k", STICKY, "-w", "4", serving=4, env=env)
    guests = Guests(server.url, BOTH, at_exit)
    guests.invite_until(on_workers(4))
    reader = guests.all[-1]
    reader.do("enter_room", reader.sid, "readers")

    assert run(code, server, env) == ""
    for guest in guests.all:
        if guest is reader:
            event, news = guest.heard.get(timeout=20)
            assert (event, news["bytes"], len(news["text"])) == ("news", 300_000, 300_000)
        assert guest.heard.get(timeout=20) == ("more", "two", "values")


def test_a_server_that_is_no_worker_reaches_nobody(
    gunicorn: StartGunicorn, at_exit: ExitStack
) -> None:
    """A development server beside a real one, for instance."""
    server = gunicorn("remote_controlled:app", "-k", STICKY, "-w", "1", serving=1)
    guests = Guests(server.url, BOTH, at_exit)
    guests.invite()
    assert "messages stay in this process" in run(STRAY, server, {})
    run(WRITE, server, {})
    assert guests.all[0].heard.get(timeout=20) == ("more", "two", "values")


def test_without_a_server_it_is_an_error(gunicorn: StartGunicorn, at_exit: ExitStack) -> None:
    server = gunicorn("remote_controlled:app", "-k", STICKY, "-w", "1")
    server.stop()
    with pytest.raises(AssertionError, match="BusError: no server found"):
        run(WRITE, server, {})
