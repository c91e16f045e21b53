"""`gunicorn-cluster roll`, as a deploy script runs it: 0 for a good deploy, 1 and why for a bad."""

import os
import re
import signal
from collections.abc import Callable

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.clients.command import Done
from tests.harness.clients.load import NOTICED_S
from tests.harness.servers.bad_deploys import BAD, CRASHES, REFUSED, THIRD_FAILS
from tests.harness.servers.deploy import GOOD, IMPORTING, slow
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


def reason(done: Done) -> str:
    """Return what it said of a roll that failed."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line.removeprefix("gunicorn-cluster: ")


def test_a_good_deploy(site: StartSite) -> None:
    rolled = site()
    for number, generation in ((1, 2), (2, 3)):
        with rolled.load() as load:
            load.wait_more()
            done = rolled.command("roll")
            load.wait_more()
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(rf"^roll {number}: replacing, \d of 3$", done.stdout, re.MULTILINE)
        last = done.stdout.splitlines()[-1]
        assert last.startswith("Replaced 3 workers in ") and last.endswith(f"s (roll {number})")
        assert rolled.view.roll[:2] == (RollState.COMMITTED, number)
        rolled.check_renewed(rolled.pids, generation=generation)
        assert load.report.complaints(NOTICED_S) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_deploy(reset_site: Callable[..., Site], name: str) -> None:
    bad = BAD[name]
    failed = reset_site(**bad.settings)
    number = failed.view.roll.number + 1
    failed.deploy(bad.code)
    why = reason(failed.command("roll"))
    assert why == f"roll {number} failed: {failed.view.roll.reason}"
    assert bad.word in why
    assert failed.view.wait_slots(3) == failed.pids
    failed.deploy(GOOD)
    assert failed.command("roll").returncode == 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_configuration(reset_site: Callable[..., Site], name: str) -> None:
    refused = reset_site()
    REFUSED[name](refused)
    why = reason(refused.command("roll"))
    (line,) = refused.lines("Reload refused: ")
    said = line.partition("Reload refused: ")[2].removesuffix(". Nothing has changed.")
    assert why.startswith("no roll: the reload was refused: ")
    assert said.startswith(why.removeprefix("no roll: the reload was refused: "))
    assert refused.view.wait_slots(3) == refused.pids
    refused.configure()
    assert refused.command("roll").returncode == 0


def test_a_hook_that_refuses_at_length(site: StartSite) -> None:
    """The reason is still one line."""
    hook = "def on_reload(server):\n    raise RuntimeError('not today\\nnor tomorrow')\n"
    refused = site(hooks=hook)
    why = reason(refused.command("roll"))
    assert why == "no roll: the reload was refused: on_reload: RuntimeError: not today"
    assert refused.view.wait_slots(3, generation=1) == refused.pids


@pytest.mark.parametrize("name", THIRD_FAILS)
def test_the_third_of_four_fails(site: StartSite, name: str) -> None:
    bad = THIRD_FAILS[name]
    failed = site(workers=4, cluster_roll_rollback="keep", **bad.settings)
    failed.deploy(bad.code)
    why = reason(failed.command("roll"))
    assert bad.word in why and why.endswith("; 2 of 4 workers were replaced")


def test_a_crash_while_it_is_observed(site: StartSite) -> None:
    failed = site(cluster_roll_observe=20)
    failed.deploy(CRASHES)
    assert "code 9" in reason(failed.command("roll"))


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_gunicorns_own_workers(site: StartSite, kind: str) -> None:
    rolled = site(worker_class=kind)
    assert rolled.command("roll").returncode == 0
    rolled.check_renewed(rolled.pids)
    rolled.deploy("import no_such_module\n")
    assert "could not load" in reason(rolled.command("roll"))


# --- while it goes on ---------------------------------------------------------------------------


def test_it_is_followed_for_some_time(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(3))
    why = reason(rolled.command("roll", "--timeout", "1"))
    assert why == "roll 1 has not finished, 0 of 3 replaced, after 1 s"
    rolled.view.wait_roll(1)


def test_ctrl_c_ends_the_command_only(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(1))
    with rolled.running_command("roll") as command:
        rolled.view.wait_roll(1, RollState.ROLLING)
        assert command.stdout is not None
        assert command.stdout.readline().startswith("roll 1: replacing")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 130
    assert err == (
        "gunicorn-cluster: no longer following roll 1, which continues (roll --abort ends it)\n"
    )
    rolled.view.wait_roll(1)


def test_abort(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(60))
    with rolled.running_command("roll") as command:
        rolled.view.wait_roll(1, RollState.ROLLING)
        done = rolled.command("roll", "--abort")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Roll 1 aborted\n", "")
        _, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, err) == (1, "gunicorn-cluster: roll 1 failed: it was aborted\n")
    assert rolled.view.wait_slots(3, generation=1) == rolled.pids
    assert reason(rolled.command("roll", "--abort")) == "no roll is under way"


def test_another_roll_takes_its_place(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(60))
    with rolled.running_command("roll") as command:
        wait_until(lambda: rolled.lines(IMPORTING), PATIENCE_S, "a worker that imports")
        rolled.deploy(GOOD)
        assert rolled.command("roll").returncode == 0
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1
    assert err in (
        "gunicorn-cluster: roll 1 failed: another reload was requested\n",
        "gunicorn-cluster: roll 2 took the place of roll 1\n",
    )


def test_a_configuration_that_is_refused_while_a_roll_is_under_way(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(2))
    with rolled.running_command("roll") as command:
        rolled.view.wait_roll(1, RollState.ROLLING)
        REFUSED["error"](rolled)
        why = reason(rolled.command("roll"))
        assert why == "no roll: the configuration was refused; the current roll continues"
        _, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_meanwhile(site: StartSite, number: int) -> None:
    rolled = site()
    rolled.deploy(slow(60))
    with rolled.running_command("roll") as command:
        # The command has its reply, and follows the roll.
        wait_until(lambda: rolled.view.replies == 1, PATIENCE_S, "a reply")
        os.kill(rolled.server.pid, number)
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1
    assert err.startswith(
        f"gunicorn-cluster: server {rolled.server.pid} has ended: roll 1 has not finished"
    )
    rolled.server.kill()


def test_preload_app_is_said(site: StartSite) -> None:
    rolled = site(preload_app=True)
    done = rolled.command("roll")
    assert done.returncode == 0
    assert done.stderr.startswith("gunicorn-cluster: preload_app: the new workers run the code")
