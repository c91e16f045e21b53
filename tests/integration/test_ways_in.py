"""However the pack is enabled, it works, and the user's own hooks still run."""

import os
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import EXAMPLES, Gunicorn
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

# Every server hook that gunicorn has, with the arguments that it demands.
HOOKS = {
    "on_starting": "server",
    "on_reload": "server",
    "when_ready": "server",
    "pre_fork": "server, worker",
    "post_fork": "server, worker",
    "post_worker_init": "worker",
    "worker_int": "worker",
    "worker_abort": "worker",
    "pre_exec": "server",
    "pre_request": "worker, req",
    "post_request": "worker, req, environ, resp",
    "child_exit": "server, worker",
    "worker_exit": "server, worker",
    "nworkers_changed": "server, new_value, old_value",
    "on_exit": "server",
}

_NOTE = """
import os

def note(hook):
    file = os.open("hooks.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, hook.encode() + b"\\n")
    os.close(file)
"""


def hooks(names: Iterable[str] = HOOKS) -> str:
    """Return a configuration whose hooks append their names to a file."""
    return _NOTE + "".join(f"\ndef {name}({HOOKS[name]}):\n    note({name!r})\n" for name in names)


def counted(server: Gunicorn) -> Counter[str]:
    """Return how often each hook has run so far."""
    path = server.directory / "hooks.txt"
    return Counter(path.read_text().split() if path.exists() else [])


def wait_counted(server: Gunicorn, hook: str, times: int) -> None:
    wait_until(lambda: counted(server)[hook] >= times, PATIENCE_S, f"{times} times {hook}")


# --- all hooks run as often as without the pack ------------------------------------------


def live_a_life(server: Gunicorn) -> Counter[str]:
    """Make every hook run, and return how often each did."""
    server.wait_serving(2)
    for _ in range(3):
        assert server.get("/").status == 200
    server.signal(signal.SIGTTIN)
    server.wait_serving(3)
    wait_counted(server, "post_worker_init", 3)
    server.signal(signal.SIGTTOU)
    wait_counted(server, "child_exit", 1)
    server.wait_serving(2)
    for number, ended in ((signal.SIGQUIT, 2), (signal.SIGABRT, 3), (signal.SIGKILL, 4)):
        os.kill(server.worker_pids()[0], number)
        wait_counted(server, "child_exit", ended)
        wait_counted(server, "post_worker_init", ended + 2)
        server.wait_serving(2)
    server.signal(signal.SIGHUP)
    wait_counted(server, "child_exit", 6)
    wait_counted(server, "post_worker_init", 8)
    server.wait_serving(2)
    assert server.get("/").status == 200
    server.stop()
    return counted(server)


def test_all_hooks_run_as_often_as_on_stock_gthread(gunicorn: StartGunicorn) -> None:
    lives = []
    for kind in ("gthread", STICKY):
        config = hooks() + f"\nworker_class = {kind!r}\nworkers = 2\n"
        lives.append(live_a_life(gunicorn("whoami:app", config=config, wait=False)))
    stock, ours = lives
    assert ours == stock
    assert ours == {
        "on_starting": 1,
        "on_reload": 1,
        "when_ready": 1,
        "pre_fork": 8,
        "post_fork": 8,
        "post_worker_init": 8,
        "worker_int": 1,
        "worker_abort": 1,
        "pre_request": 4,
        "post_request": 4,
        "child_exit": 8,
        "worker_exit": 7,  # not by the one that was killed
        "nworkers_changed": 4,
        "on_exit": 1,
    }


# --- each way in, and HUP after it ---------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """The arguments on the command line, and the configuration file."""

    args: tuple[str, ...] = ()
    config: str | None = None
    kind: str = STICKY
    preload: bool = False


# Hooks that the pack needs itself, and more, as a user defines them.
OWN = hooks(("on_starting", "pre_fork", "post_fork", "post_worker_init", "child_exit", "on_exit"))
CONF = "from gunicorn_cluster_ext.conf import *\n"

WAYS = {
    "worker_class": Way(config=OWN + f"worker_class = {STICKY!r}\n"),
    "worker_class, preload": Way(
        config=OWN + f"worker_class = {STICKY!r}\npreload_app = True\n", preload=True
    ),
    "a class for a name": Way(
        config=OWN + "from gunicorn_cluster_ext import Sticky\nworker_class = Sticky\n"
    ),
    "python:": Way(args=("-c", "python:gunicorn_cluster_ext.conf")),
    "python:, preload": Way(
        args=("-c", "python:gunicorn_cluster_ext.conf", "--preload"), preload=True
    ),
    "example": Way(args=("-c", str(EXAMPLES / "gunicorn_cluster_ext.conf"))),
    "import *": Way(config=CONF + OWN),
    "import *, preload": Way(config=CONF + OWN + "preload_app = True\n", preload=True),
    "import * last": Way(config=OWN.replace("on_starting", "when_ready") + CONF),
    "a hook that calls ours": Way(
        config="from gunicorn_cluster_ext import hooks\n"
        + OWN.replace('note("on_starting")', 'note("on_starting"); hooks.on_starting(server)')
        + "def when_ready(server):\n    hooks.on_starting(server)\n"
    ),
    "our hooks by name": Way(
        config="from gunicorn_cluster_ext.hooks import *\nworker_class = 'sync'\n", kind="sync"
    ),
    "our hooks by name, Sticky": Way(
        config=f"from gunicorn_cluster_ext.hooks import *\nworker_class = {STICKY!r}\n"
    ),
    "-k": Way(args=("-k", STICKY)),
    "-k over another in the file": Way(args=("-k", STICKY), config=OWN + "worker_class = 'sync'\n"),
    "GUNICORN_CMD_ARGS": Way(args=()),
    "sync": Way(args=("-c", "python:gunicorn_cluster_ext.conf", "-k", "sync"), kind="sync"),
    "gthread": Way(
        args=("-c", "python:gunicorn_cluster_ext.conf", "-k", "gthread", "--threads", "4"),
        kind="gthread",
    ),
    "sync in the file": Way(
        config=CONF + hooks(("pre_fork", "post_fork", "child_exit")) + "worker_class = 'sync'\n",
        kind="sync",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_way(gunicorn: StartGunicorn, name: str) -> None:
    way = WAYS[name]
    env = {"GUNICORN_CMD_ARGS": f"-k {STICKY}"} if name == "GUNICORN_CMD_ARGS" else {}
    args = (*way.args, "-w", "2")
    if name == "a hook that calls ours":
        args = (*args, "-k", STICKY)
    server = gunicorn("worker_names:app", *args, config=way.config, env=env)
    view = View(server)
    pids = view.wait_slots(2, generation=1)
    check_works(server, way, pids)
    check_hooks(server, way, workers=2, gone=0)

    server.signal(signal.SIGHUP)
    renewed = view.wait_slots(2, generation=2)
    assert not set(renewed.values()) & set(pids.values())
    check_works(server, way, renewed)
    check_hooks(server, way, workers=4, gone=2)

    os.kill(renewed[0], signal.SIGKILL)
    wait_until(lambda: view.generations().get(0) == 3, PATIENCE_S, "a new worker 0")
    after = view.wait_slots(2)
    assert after[1] == renewed[1]
    check_works(server, way, after)
    check_hooks(server, way, workers=5, gone=3)

    server.stop()
    check_hooks(server, way, workers=5, gone=5)
    if "def on_exit" in (way.config or ""):
        assert counted(server)["on_exit"] == 1
    assert "Traceback" not in server.log_text()
    assert not list(server.directory.glob("gunicorn-cluster-*"))


def check_works(server: Gunicorn, way: Way, pids: dict[int, int]) -> None:
    assert f"Using worker: {way.kind}" in server.log_text() or way.kind == STICKY
    if way.kind == STICKY:  # the cookie chooses
        for slot, pid in pids.items():
            who = server.get("/", cookie=f"gunicorn_worker={slot}").json()
            assert (who["worker_id"], who["pid"]) == (slot, pid)
        assert server.get("/").cookies().keys() == {"gunicorn_worker"}
    else:
        answer = server.get("/")
        who = answer.json()
        assert pids[who["worker_id"]] == who["pid"]
        assert who["environ"] == who["worker_id"]
        # These workers cannot bring a request to the one that it names.
        assert answer.cookies() == {}
    at_import = who["at_import"]["pid"]
    assert at_import == (server.master_pid if way.preload else who["pid"])


def check_hooks(server: Gunicorn, way: Way, workers: int, gone: int) -> None:
    config = way.config or ""
    if "def child_exit" in config:  # a worker is gone before the arbiter has heard of it
        wait_counted(server, "child_exit", gone)
    seen = counted(server)
    expected = {
        "on_starting": 1,
        "pre_fork": workers,
        "post_fork": workers,
        "post_worker_init": workers,
        "child_exit": gone,
    }
    for hook, times in expected.items():
        if f"def {hook}" in config:
            assert seen[hook] == times, hook


def test_values_after_the_star_win(gunicorn: StartGunicorn) -> None:
    config = CONF + "keepalive = 1\nworkers = 2\ncluster_cookie = 'own'\ncluster_threads = 7\n"
    server = gunicorn("whoami:app", config=config)
    view = View(server)
    view.wait_slots(2)
    assert view.slots()[0].words["threads"] == 7
    assert server.get("/").cookies().keys() == {"own"}
    with server.connect() as connection:
        connection.get("/")
        assert connection.closed_by_peer()


def test_what_the_ready_made_configuration_sets(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "--print-config", wait=False)
    assert server.wait_exit(PATIENCE_S) == 0
    args = ("-c", "python:gunicorn_cluster_ext.conf", "--print-config")
    with_pack = gunicorn("whoami:app", *args, wait=False)
    assert with_pack.wait_exit(PATIENCE_S) == 0
    changed = {
        line.split("=")[0].strip()
        for line in set(with_pack.log_text().splitlines()) - set(server.log_text().splitlines())
    }
    assert {"worker_class", "keepalive", "config"} <= changed
    assert changed <= {
        "worker_class",
        "keepalive",
        "config",
        "on_starting",
        "chdir",
        "control_socket",
    }


@pytest.mark.parametrize(
    ("args", "threads"),
    [
        ((), 100),
        (("--threads", "3"), 3),
        (("--threads=1",), 1),
        (("-c", "python:gunicorn_cluster_ext.conf"), 100),
    ],
)
def test_threads(gunicorn: StartGunicorn, args: tuple[str, ...], threads: int) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, *args)
    view = View(server)
    view.wait_slots(1)
    assert view.slots()[0].words["threads"] == threads
    server.signal(signal.SIGHUP)
    view.wait_slots(1, generation=2)
    assert view.slots()[0].words["threads"] == threads


def test_a_worker_class_that_a_reload_changes(gunicorn: StartGunicorn) -> None:
    """A reload enables the pack, and disables it, without a restart."""
    server = gunicorn("whoami:app", config="worker_class = 'gthread'\nworkers = 2\n")
    server.wait_serving(2)
    server.config_path.write_text(OWN + f"worker_class = {STICKY!r}\nworkers = 2\n")
    server.signal(signal.SIGHUP)
    view = View(server)
    view.wait_slots(2)
    assert server.get("/", cookie="gunicorn_worker=1").json()["worker"] == 1
    assert counted(server)["post_worker_init"] == 2
    server.config_path.write_text("worker_class = 'gthread'\nworkers = 2\n")
    server.signal(signal.SIGHUP)
    view.wait_slots(2, generation=2)
    assert server.get("/").json()["worker"] in (0, 1)
    assert server.get("/").cookies() == {}


def test_an_error_in_the_application_stops_the_start_as_ever(gunicorn: StartGunicorn) -> None:
    for kind in ("gthread", STICKY):
        server = gunicorn("nowhere:app", "-k", kind, wait=False)
        assert server.wait_exit(PATIENCE_S) == 3, kind
        assert not list(server.directory.glob("gunicorn-cluster-*"))


def test_an_address_that_is_taken(gunicorn: StartGunicorn) -> None:
    first = gunicorn("whoami:app")
    bind = f"127.0.0.1:{first.port}"
    server = gunicorn("whoami:app", "-c", "python:gunicorn_cluster_ext.conf", bind=bind, wait=False)
    assert server.wait_exit(PATIENCE_S) == 1
    assert "Traceback" not in server.log_text()
    assert not list(server.directory.glob("gunicorn-cluster-*"))
