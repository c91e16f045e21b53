"""Identity: a worker's number, wherever an application or its operator looks for it."""

import os
import re
import signal
from typing import Any

import pytest

from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

# What gunicorn writes: date, pid, level, message.
CONF = "python:gunicorn_cluster_ext.conf"
FILE_LOG = ("--error-logfile", "gunicorn.log", "--capture-output")
LINE = re.compile(r"\[[\d: +-]+\] \[(?P<pid>\d+)\] \[(?P<level>[A-Z]+)\] (?P<message>.*)")


def ask(server: Gunicorn, slot: int) -> Any:
    return server.get("/", cookie=f"gunicorn_worker={slot}").json()


def messages(server: Gunicorn) -> list[tuple[int, str]]:
    """(pid, message) of each line of the error log."""
    found = (LINE.fullmatch(line) for line in server.log_text().splitlines())
    return [(int(match["pid"]), match["message"]) for match in found if match]


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["load", "preload"])
def test_the_application_knows_its_worker(
    gunicorn: StartGunicorn, preload: tuple[str, ...]
) -> None:
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "3", *preload)
    view = View(server)
    pids = view.wait_slots(3)
    for slot, pid in pids.items():
        who = ask(server, slot)
        assert who["pid"] == pid
        assert who["worker_id"] == who["environ"] == slot
        assert who["environment"] == str(slot)
        assert who["current"] == {"slot": slot, "generation": 1, "pid": pid}
        at_import = who["at_import"]
        if preload:
            assert at_import == {"worker_id": None, "current": None, "pid": server.master_pid}
        else:
            assert at_import == {"worker_id": slot, "current": [slot, 1, pid], "pid": pid}
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: view.generations().get(1) == 2, PATIENCE_S, "a new worker 1")
    pids = view.wait_slots(3)
    assert ask(server, 1)["current"] == {"slot": 1, "generation": 2, "pid": pids[1]}


def test_the_environment_of_the_server_is_not_believed(gunicorn: StartGunicorn) -> None:
    """As under USR2, or when a worker starts another gunicorn."""
    server = gunicorn("worker_names:app", "-k", STICKY, env={"GUNICORN_WORKER_ID": "7"})
    View(server).wait_slots(1)
    assert ask(server, 0)["environment"] == "0"


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_stock_workers_know_their_number_too(gunicorn: StartGunicorn, kind: str) -> None:
    server = gunicorn("worker_names:app", "-c", CONF, "-k", kind, "-w", "2")
    pids = View(server).wait_slots(2)
    who = server.get("/").json()
    assert pids[who["worker_id"]] == who["pid"]
    assert who["environ"] == who["worker_id"]
    assert who["environment"] == str(who["worker_id"])


def test_an_application_of_tornado_is_served_as_it_is(gunicorn: StartGunicorn) -> None:
    config = "from gunicorn_cluster_ext.conf import *\nworker_class = 'tornado'\nworkers = 2\n"
    server = gunicorn("worker_names_tornado:app", config=config)
    server.wait_serving(2)
    assert server.get("/").body in (b"0", b"1")


@pytest.mark.parametrize("kind", ["asgi", "uvicorn.workers.UvicornWorker"])
def test_asgi_workers_know_their_number_too(gunicorn: StartGunicorn, kind: str) -> None:
    conf = ("-c", CONF)
    server = gunicorn("worker_names_asgi:app", *conf, "-k", kind, "-w", "2")
    pids = View(server).wait_slots(2)
    answer = server.get("/")
    who = answer.json()
    assert pids[who["worker_id"]] == who["pid"]
    assert who["scope"] == who["worker_id"]
    assert "Set-Cookie" not in answer.headers  # nobody would be routed by it


def test_hooks_know_the_worker(gunicorn: StartGunicorn) -> None:
    config = """
import os
from gunicorn_cluster_ext import current_worker, worker_id

def note(hook):
    with open(f"{hook}.txt", "a") as file:
        print(os.getpid(), worker_id(), os.environ.get("GUNICORN_WORKER_ID"), file=file)

def on_starting(server): note("on_starting")
def when_ready(server): note("when_ready")
def pre_fork(server, worker): note("pre_fork")
def post_fork(server, worker): note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def worker_exit(server, worker): note("worker_exit")
def child_exit(server, worker): note("child_exit")
"""
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "2", config=config)
    pids = View(server).wait_slots(2)
    server.stop()

    def lines(hook: str) -> list[list[str]]:
        text = (server.directory / f"{hook}.txt").read_text()
        return [line.split() for line in text.splitlines()]

    for hook in ("on_starting", "when_ready", "pre_fork", "child_exit"):
        assert {tuple(line) for line in lines(hook)} == {(str(server.pid), "None", "None")}, hook
    of_workers = [[str(pid), str(slot), str(slot)] for slot, pid in pids.items()]
    for hook in ("post_fork", "post_worker_init", "worker_exit"):
        assert sorted(lines(hook), key=lambda line: line[1]) == of_workers, hook


def test_a_hook_that_forks_takes_no_identity_away(gunicorn: StartGunicorn) -> None:
    config = """
import os

def pre_fork(server, worker):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
"""
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "2", config=config)
    pids = View(server).wait_slots(2)
    who = ask(server, 1)
    assert (who["worker_id"], who["environment"], who["pid"]) == (1, "1", pids[1])


def test_a_child_of_a_worker_that_is_no_worker(gunicorn: StartGunicorn) -> None:
    """What the arbiter forks beside its workers is nobody."""
    config = """
import os
import gunicorn_cluster_ext

def child_exit(server, worker):
    child = os.fork()
    if not child:
        with open("forked.txt", "w") as file:
            file.write(str(gunicorn_cluster_ext.worker_id()))
        os._exit(0)
    os.waitpid(child, 0)
"""
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "2", config=config)
    view = View(server)
    os.kill(view.wait_slots(2)[1], signal.SIGKILL)
    wait_until(lambda: view.generations().get(1) == 2, PATIENCE_S, "a new worker 1")
    assert (server.directory / "forked.txt").read_text() == "None"


def test_access_logs_can_name_the_worker(gunicorn: StartGunicorn) -> None:
    server = gunicorn(
        "worker_names:app",
        *("-k", STICKY, "-w", "3"),
        *("--access-logfile", "access.log"),
        *("--access-logformat", "%(p)s %(s)s worker=%({gunicorn_cluster.worker_id}e)s"),
    )
    pids = View(server).wait_slots(3)
    for slot in pids:
        ask(server, slot)
    log = server.directory / "access.log"
    wait_until(lambda: log.read_text().count("\n") >= 4, PATIENCE_S, "four lines")
    for slot, pid in pids.items():
        # %(p)s is gunicorn's own: "<pid>".
        assert f"<{pid}> 200 worker={slot}" in log.read_text().splitlines()


def check_error_log(server: Gunicorn, numbers: dict[int, int]) -> None:
    """Every line of a worker names it; the arbiter's lines are as gunicorn writes them."""
    written = messages(server)
    for pid, message in written:
        if pid == server.master_pid:
            assert "[worker" not in message
        else:
            assert message.startswith(f"[worker {numbers[pid]}] "), message
    for pid, slot in numbers.items():
        assert (pid, f"[worker {slot}] Booting worker with pid: {pid}") in written
    assert any(
        pid == server.master_pid and message.startswith("Listening at: http://")
        for pid, message in written
    )


@pytest.mark.parametrize(
    "way",
    [("-k", STICKY), ("-c", CONF, "-k", "sync")],
    ids=["sticky", "sync"],
)
def test_the_error_log_names_the_worker(gunicorn: StartGunicorn, way: tuple[str, ...]) -> None:
    server = gunicorn("worker_names:app", *way, "-w", "2", "--log-level", "debug")
    view = View(server)
    first = view.wait_slots(2)
    server.get("/")
    server.signal(signal.SIGHUP)
    second = view.wait_slots(2, generation=2)
    server.signal(signal.SIGUSR1)
    wait_until(lambda: "Handling signal: usr1" in server.log_text(), PATIENCE_S, "USR1")
    os.kill(second[1], signal.SIGKILL)
    wait_until(lambda: view.generations().get(1) == 3, PATIENCE_S, "a new worker 1")
    third = view.wait_slots(2)
    server.stop()
    everybody = {**first, **{slot + 10: pid for slot, pid in second.items()}}
    numbers = {pid: slot % 10 for slot, pid in everybody.items()} | {third[1]: 1}
    check_error_log(server, numbers)
    ends = [f"[worker 0] Worker exiting (pid: {pid})" for pid in (first[0], second[0])]
    assert {message for _, message in messages(server)} >= set(ends)


def test_the_error_log_in_a_file_with_what_the_application_prints(
    gunicorn: StartGunicorn,
) -> None:
    # The file is the one that the harness reads.
    server = gunicorn(
        "worker_names:app",
        "-k",
        STICKY,
        "-w",
        "2",
        "--error-logfile",
        "gunicorn.log",
        "--capture-output",
    )
    pids = View(server).wait_slots(2)
    ask(server, 1)
    # Where Python's own streams go, lines are the application's: they stay as they are.
    for line in ("printed by the application", "complained by the application"):
        wait_until(lambda line=line: line in server.log_text(), PATIENCE_S, line)
        assert line in server.log_text().splitlines()
    server.stop()
    check_error_log(server, {pid: slot for slot, pid in pids.items()})


LOGGING = """
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "own": {
            "format": "OWN pid=%(process)d w=%(worker_id)s g=%(worker_generation)s %(message)s"
        }
    },
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"handlers": ["own"], "level": "INFO"},
    "loggers": {
        "gunicorn.error": {"handlers": ["own"], "level": "INFO", "propagate": False},
        "gunicorn.access": {"handlers": ["own"], "level": "INFO", "propagate": False},
    },
}
accesslog = "-"
access_log_format = "accessed"
"""


@pytest.mark.parametrize("way", ["worker_class", "conf"])
def test_a_logging_configuration_of_ones_own(gunicorn: StartGunicorn, way: str) -> None:
    first = "from gunicorn_cluster_ext.conf import *\n" if way == "conf" else ""
    server = gunicorn("worker_names:app", "-k", STICKY, "-w", "2", config=first + LOGGING)
    view = View(server)
    pids = view.wait_slots(2)
    ask(server, 1)
    log = server.log_text()
    assert f"OWN pid={pids[1]} w=1 g=1 Booting worker with pid: {pids[1]}" in log
    wait_until(
        lambda: f"OWN pid={pids[1]} w=1 g=1 accessed" in server.log_text(), PATIENCE_S, "access"
    )
    server.signal(signal.SIGHUP)
    pids = view.wait_slots(2, generation=2)
    server.stop()
    log = server.log_text()
    assert f"OWN pid={pids[1]} w=1 g=2 Booting worker with pid: {pids[1]}" in log
    assert f"OWN pid={server.pid} w=- g=- Handling signal: hup" in log
    # Lines of before the first fork must not fail for want of the fields.
    assert "Logging error" not in log and "Traceback" not in log
    assert f"OWN pid={server.pid} w=- g=- Starting gunicorn" in log
