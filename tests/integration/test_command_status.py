"""What a running server looks like from the command line."""

import json
import os
import signal
from typing import Any

import pytest

from gunicorn_cluster_ext import __version__
from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.servers.site import Site, StartSite, for_each
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


def status(of: Site, *arguments: str) -> str:
    done = of.command("status", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def as_json(of: Site) -> Any:
    return json.loads(status(of, "--json"))


def table(text: str) -> list[dict[str, str]]:
    """The rows below the titles, as far as they are one word wide."""
    _, _, below = text.partition("\n\n")
    titles, *rows = below.splitlines()
    names = titles.replace("LAST REASON", "LAST").split()
    return [dict(zip(names, row.split(maxsplit=len(names) - 1), strict=False)) for row in rows]


def test_the_table(site: StartSite) -> None:
    seen = site(threads=4)
    with seen.load(request=for_each(3)) as load:
        load.wait_more()
        wait_until(
            lambda: all(float(row["REQ/S"]) > 0 for row in table(status(seen))),
            PATIENCE_S,
            "a rate of each worker",
        )
        text = status(seen)
    first, second, third, _ = text.splitlines()[:4]
    assert f"gunicorn-cluster-ext {__version__}, " in first and f"master {seen.server.pid}" in first
    assert seen.server.url in second and "deployed:app" in second and "Sticky" in second
    assert third == "3 of 3 workers serve, 0 of 20 crashes in 60 s, no roll yet"
    rows = table(text)
    assert {int(row["ID"]): int(row["PID"]) for row in rows} == seen.pids
    for row in rows:
        assert (row["STATE"], row["GEN"], row["RESTARTS"]) == ("ready", "1", "0")
        assert row["BUSY"].endswith("/4")
        assert float(row["REQUESTS"]) > 0 and float(row["CONNS"]) > 0
        assert 5 < int(row["RSS"].removesuffix("M")) < 500
    assert "\x1b" not in text


def test_json(shared_site: StartSite) -> None:
    seen = shared_site()
    found = as_json(seen)
    assert (found["master"], found["target"], found["serving"]) == (seen.server.pid, 3, 3)
    assert found["server"]["addresses"] == [seen.server.url]
    assert found["server"]["settings"]["workers"] == 3
    assert found["roll"] == {
        "state": "none",
        "number": 0,
        "replaced": 0,
        "total": 0,
        "reason": "",
    }
    assert {each["id"]: each["pid"] for each in found["workers"]} == seen.pids
    for each in found["workers"]:
        assert (each["state"], each["generation"], each["last_exit"]) == ("ready", 1, None)
        assert 0 < each["uptime"] < 600
        assert each["memory"] > 5_000_000
        assert 0 <= each["processor_time"] <= each["uptime"]
        assert set(each["restarts"].values()) == {0}


def test_restarts_and_their_reason(site: StartSite) -> None:
    seen = site()
    os.kill(seen.pids[1], signal.SIGKILL)
    seen.view.wait_generation(1, 2)
    found = as_json(seen)
    (killed,) = [each for each in found["workers"] if each["id"] == 1]
    assert killed["restarts"]["crash"] == 1 and sum(killed["restarts"].values()) == 1
    assert killed["last_exit"]["reason"] == "was ended by SIGKILL"
    assert 0 <= killed["last_exit"]["seconds_ago"] < 60
    assert found["recent_exits"] == 1
    text = status(seen)
    assert "1 of 20 crashes in 60 s" in text
    (row,) = [row for row in table(text) if row["ID"] == "1"]
    assert (row["RESTARTS"], row["LAST"]) == ("1", "was ended by SIGKILL")


def test_a_slot_that_waits_for_its_next_attempt(site: StartSite) -> None:
    seen = site(workers=2, cluster_restart_delay=60, cluster_restart_delay_max=60)
    os.kill(seen.pids[1], signal.SIGKILL)
    wait_until(lambda: len(seen.view.rows) == 1, PATIENCE_S, "the end of a worker")
    served, waiting = as_json(seen)["workers"]
    assert (served["id"], served["state"]) == (0, "ready")
    assert (waiting["id"], waiting["state"], waiting["pid"]) == (1, "waiting", None)
    assert "1 of 2 workers serve" in status(seen)


def test_a_roll_that_failed(site: StartSite) -> None:
    seen = site()
    seen.deploy("import no_such_module\n")
    reason = seen.roll(RollState.FAILED).reason
    assert f"roll 1 failed: {reason}" in status(seen)


def test_reading_changes_nothing(shared_site: StartSite) -> None:
    """Nobody writes while the arbiter and the workers are stopped."""
    seen = shared_site()
    path = seen.view.path
    pids = [seen.server.pid, *seen.pids.values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        before, changed = path.read_bytes(), path.stat().st_mtime_ns
        for arguments in (["status"], ["status", "--json"], ["events"]):
            done = seen.command(*arguments)
            assert (done.returncode, done.stderr) == (0, "")
        assert path.read_bytes() == before
        assert path.stat().st_mtime_ns == changed
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert seen.server.get("/").status == 200
