"""`gunicorn-cluster events`: what happened to a real server."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from gunicorn_cluster_ext.runtime.event_log import EVENTS_FILE
from tests.harness.clients.command import Running
from tests.harness.servers.bad_deploys import REFUSED
from tests.harness.servers.deploy import GOOD
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


def lines(of: Site, *arguments: str) -> list[str]:
    done = of.command("events", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def events(of: Site) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(of, "--json")]


def wait_event(of: Site, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first event that is wanted."""
    return wait_until(lambda: next(filter(wanted, events(of)), None) or {}, PATIENCE_S, "an event")


def test_the_start(shared_site: StartSite) -> None:
    told = shared_site()
    wait_until(lambda: len(events(told)) == 7, PATIENCE_S, "events of the start")
    found = events(told)
    assert found[0]["event"] == "start" and found[0]["text"] == "3 workers are wanted"
    assert Counter(each["event"] for each in found) == {"start": 1, "boot": 3, "ready": 3}
    ready = {each["worker"]: each["pid"] for each in found if each["event"] == "ready"}
    assert ready == told.pids
    assert [each["monotonic"] for each in found] == sorted(each["monotonic"] for each in found)


def test_exits_and_why(site: StartSite) -> None:
    told = site()
    os.kill(told.pids[1], signal.SIGKILL)
    crash = wait_event(told, lambda each: each["event"] == "exit")
    assert (crash["worker"], crash["generation"], crash["pid"]) == (1, 1, told.pids[1])
    assert crash["cause"] == "crash"
    assert crash["text"].startswith("was ended by SIGKILL after serving for ")
    again = wait_event(told, lambda each: each["event"] == "ready" and each["generation"] == 2)
    assert again["worker"] == 1


def test_rolls_reloads_and_wishes(site: StartSite) -> None:
    told = site()
    told.roll()
    told.deploy("import no_such_module\n")
    told.roll(RollState.FAILED)
    told.deploy(GOOD)
    REFUSED["error"](told)
    told.hup()
    told.view.wait_roll(3, RollState.FAILED)
    told.view.wait_slots(3)
    told.command("scale", "4")
    seen = {each["event"]: each.get("text", "") for each in events(told)}
    assert re.fullmatch(r"replaced 3 workers in \d+\.\d s", seen["roll committed"])
    assert "could not load the application" in seen["roll failed"]
    assert "the previous workers keep serving" in seen["roll failed"]
    assert seen["reload refused"].endswith("/gunicorn.conf.py: RuntimeError: not today")
    assert seen["workers"] == "4 are wanted instead of 3"
    assert seen["control"] == "4 workers instead of 3"
    causes = Counter(each.get("cause") for each in events(told) if each["event"] == "exit")
    assert causes["roll"] == 3 and causes["boot"] == 1


def test_for_people(shared_site: StartSite) -> None:
    told = shared_site()
    wait_until(lambda: len(events(told)) == 7, PATIENCE_S, "events of the start")
    first, *_ = lines(told)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d start: 3 workers are wanted", first)
    last = lines(told, "-n", "2")
    assert len(last) == 2
    shape = r".{19} ready worker \d\.1 pid \d+: after \d+\.\d s"
    assert all(re.fullmatch(shape, line) for line in last)
    assert lines(told, "-n", "0") == []


def following(of: Site) -> AbstractContextManager[Running]:
    return of.running_command("events", "--follow", "--json")


def follow(process: Running, event: str) -> dict[str, Any]:
    """Read until that event comes."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"no {event}")


def test_follow_until_the_server_ends(site: StartSite) -> None:
    told = site()
    with following(told) as process:
        follow(process, "ready")
        os.kill(told.pids[0], signal.SIGKILL)
        assert follow(process, "exit")["pid"] == told.pids[0]
        told.view.wait_generation(0, 2)
        told.server.stop()
        follow(process, "stop")
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_ctrl_c_ends_following(site: StartSite) -> None:
    told = site(workers=1)
    with following(told) as process:
        follow(process, "ready")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert told.server.get("/").status == 200


def test_who_closes_the_pipe_ends_following(site: StartSite) -> None:
    """As `| head` does; no further event is needed."""
    told = site(workers=1)
    with following(told) as process:
        follow(process, "ready")
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == ""


def test_a_server_that_cannot_write_them_runs(site: StartSite) -> None:
    """It logs that once, and records how many events were lost when it can write again."""
    told = site()
    path: Path = told.view.path.parent / EVENTS_FILE
    path.unlink()
    path.mkdir()
    told.roll()
    assert len(told.lines("Events cannot be written")) == 1
    path.rmdir()
    told.roll()
    first, *rest = events(told)
    assert first["lost"] >= 7
    assert not any("lost" in each for each in rest)
    assert told.server.get("/").status == 200
