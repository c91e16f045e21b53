"""What a running server looks like from the command line."""

import os
import signal

import pytest

from gunicorn_cluster_ext import __version__
from tests.harness import command
from tests.harness.waiting import wait_until
from tests.integration.site import Site, StartSite, for_each
from tests.integration.test_roll import wait_more
from tests.integration.view import PATIENCE_S


def status(of: Site, *arguments: str) -> command.Result:
    return command.run("status", "--pid", of.server.pid, *arguments)


def table(text: str) -> list[dict[str, str]]:
    """The rows below the titles, as far as they are one word wide."""
    _, _, below = text.partition("\n\n")
    titles, *rows = below.splitlines()
    names = titles.replace("LAST REASON", "LAST").split()
    return [dict(zip(names, row.split(maxsplit=len(names) - 1), strict=False)) for row in rows]


def test_the_table(site: StartSite) -> None:
    seen = site(threads=4)
    with seen.load(request=for_each(3)) as load:
        wait_more(load)
        wait_until(
            lambda: all(float(row["REQ/S"]) > 0 for row in table(status(seen).out)),
            PATIENCE_S,
            "a rate of each worker",
        )
        result = status(seen)
    assert (result.status, result.err) == (0, "")
    first, second, third, _ = result.out.splitlines()[:4]
    assert f"gunicorn-cluster-ext {__version__}, " in first and f"master {seen.server.pid}" in first
    assert seen.server.url in second and "deployed:app" in second and "Sticky" in second
    assert third == "3 of 3 workers serve, 0 of 20 crashes in 60 s, no roll yet"
    rows = table(result.out)
    assert {int(row["ID"]): int(row["PID"]) for row in rows} == seen.pids
    for row in rows:
        assert (row["STATE"], row["GEN"], row["RESTARTS"]) == ("ready", "1", "0")
        assert row["BUSY"].endswith("/4")
        assert float(row["REQUESTS"]) > 0 and float(row["CONNS"]) > 0
        assert 5 < int(row["RSS"].removesuffix("M")) < 500
    assert "\x1b" not in result.out


def test_json(site: StartSite) -> None:
    seen = site()
    found = status(seen, "--json").json()
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
        assert 0 < each["uptime"] < 60
        assert each["memory"] > 5_000_000
        assert each["processor_time"] > 0
        assert set(each["restarts"].values()) == {0}


def test_restarts_and_their_reason(site: StartSite) -> None:
    seen = site()
    os.kill(seen.pids[1], signal.SIGKILL)
    seen.view.wait_generation(1, 2)
    found = status(seen, "--json").json()
    (killed,) = [each for each in found["workers"] if each["id"] == 1]
    assert killed["restarts"]["crash"] == 1 and sum(killed["restarts"].values()) == 1
    assert killed["last_exit"]["reason"] == "was ended by SIGKILL"
    assert 0 <= killed["last_exit"]["seconds_ago"] < 60
    assert found["recent_exits"] == 1
    result = status(seen)
    assert "1 of 20 crashes in 60 s" in result.out
    (row,) = [row for row in table(result.out) if row["ID"] == "1"]
    assert (row["RESTARTS"], row["LAST"]) == ("1", "was ended by SIGKILL")


def test_a_slot_that_waits_for_its_next_attempt(site: StartSite) -> None:
    seen = site(workers=2, cluster_restart_delay=60, cluster_restart_delay_max=60)
    os.kill(seen.pids[1], signal.SIGKILL)
    wait_until(lambda: len(seen.view.rows) == 1, PATIENCE_S, "the end of a worker")
    served, waiting = status(seen, "--json").json()["workers"]
    assert (served["id"], served["state"]) == (0, "ready")
    assert (waiting["id"], waiting["state"], waiting["pid"]) == (1, "waiting", None)
    assert "1 of 2 workers serve" in status(seen).out


def test_a_roll_that_failed(site: StartSite) -> None:
    seen = site()
    seen.deploy("import no_such_module\n")
    reason = seen.roll_failed().reason
    assert f"roll 1 failed: {reason}" in status(seen).out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_columns_fit_the_terminal(site: StartSite, width: int) -> None:
    """The least important ones are dropped."""


def test_reading_changes_nothing(site: StartSite) -> None:
    """Nobody writes while the arbiter and the workers are stopped."""
    seen = site()
    path = seen.view.path
    pids = [seen.server.pid, *seen.pids.values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        before, changed = path.read_bytes(), path.stat().st_mtime_ns
        for arguments in (["status"], ["status", "--json"], ["events"]):
            assert command.run(*arguments, "--pid", seen.server.pid).status == 0
        assert path.read_bytes() == before
        assert path.stat().st_mtime_ns == changed
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert seen.server.get("/").status == 200
