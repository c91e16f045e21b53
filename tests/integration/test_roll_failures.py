"""A deploy that is no good never takes the site down: who served before goes on serving."""

import socket
from collections.abc import Callable

import pytest

from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from tests.harness.clients.load import NOTICED_S, Load
from tests.harness.servers.bad_deploys import BAD, CRASHES, HEALTH, ILL, REFUSED, THIRD_FAILS
from tests.harness.servers.deploy import GOOD
from tests.harness.servers.site import Site, StartSite, failures, for_each
from tests.harness.view import PATIENCE_S, STICKY, Watch
from tests.harness.waiting import wait_until


def check_failed(failed: Site, roll: Roll, word: str) -> None:
    """The reason stands on the board, and in one line of the log."""
    assert word in roll.reason
    (line,) = failed.lines("Roll failed")
    assert "[ERROR]" in line and roll.reason in line


def check_works_again(failed: Site, load: Load) -> None:
    """A good deploy rolls as if nothing had been."""
    before = failed.view.pids()
    failed.deploy(GOOD)
    assert failed.roll().reason == ""
    load.wait_more(50)
    pids = failed.view.wait_slots(len(before))
    assert not set(pids.values()) & set(before.values())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_deploy(reset_site: Callable[..., Site], name: str) -> None:
    bad = BAD[name]
    failed = reset_site(**bad.settings)
    failed.deploy(bad.code)
    with failed.load() as load, Watch(failed.view) as watch:
        load.wait_more(50)
        roll = failed.roll(RollState.FAILED)
        load.wait_more()
        assert failed.view.wait_slots(3) == failed.pids
        check_failed(failed, roll, bad.word)
        check_works_again(failed, load)
    assert roll.replaced == 0
    assert load.report.complaints(NOTICED_S) == []
    assert watch.fewest_serving == 3


@pytest.mark.one_gunicorn
@pytest.mark.parametrize("kind", ["gthread", "sync"])
@pytest.mark.parametrize("name", ["syntax error", "no application", "exit", "hanging import"])
def test_a_bad_deploy_on_gunicorns_own_workers(site: StartSite, kind: str, name: str) -> None:
    bad = BAD[name]
    failed = site(worker_class=kind, **bad.settings)
    failed.deploy(bad.code)
    with failed.load(connections=6) as load, Watch(failed.view) as watch:
        load.wait_more(50)
        roll = failed.roll(RollState.FAILED)
        load.wait_more(50)
        assert failed.view.wait_slots(3) == failed.pids
    check_failed(failed, roll, bad.word)
    assert failures(load.report, kind) == []
    assert set(load.report.statuses) == {200}
    assert watch.fewest_serving == 3
    failed.deploy(GOOD)
    failed.roll()
    failed.check_renewed(failed.pids)


def test_bad_deploys_one_after_the_other(site: StartSite) -> None:
    """Each is given up for its own reason, and none is held against the next."""
    failed = site(cluster_restart_limit="2/60", cluster_restart_policy="halt")
    with failed.load() as load:
        for _ in range(4):
            failed.deploy("import no_such_module\n")
            failed.roll(RollState.FAILED)
        check_works_again(failed, load)
    assert load.report.complaints(NOTICED_S) == []


# --- some are replaced already ----------------------------------------------------------------


@pytest.mark.one_gunicorn
@pytest.mark.parametrize("name", THIRD_FAILS)
def test_full_rollback(site: StartSite, name: str) -> None:
    """The third of four fails: the two that were replaced come back, and nobody notices."""
    bad = THIRD_FAILS[name]
    failed = site(workers=4, cluster_roll_rollback="full", **bad.settings)
    failed.deploy(bad.code)
    with failed.load(request=for_each(4)) as load, Watch(failed.view) as watch:
        load.wait_more()
        roll = failed.roll(RollState.FAILED)
        assert failed.view.wait_slots(4) == failed.pids
        before = load.report.pids.copy()
        wait_until(
            lambda: all(load.report.pids[pid] > before[pid] for pid in failed.pids.values()),
            PATIENCE_S,
            "answers of all old workers",
        )
        load.wait_more()
        assert failed.view.wait_slots(4) == failed.pids
        check_failed(failed, roll, bad.word)
        check_works_again(failed, load)
    assert watch.fewest_serving == 4 and watch.most_parked >= 2
    assert len(load.report.pids) > 8, "new workers have answered before they were taken back"
    assert load.report.connections == 16
    assert load.report.complaints(NOTICED_S) == []


def test_the_rollback_that_keeps(site: StartSite) -> None:
    """What was replaced before the third failed stays new."""
    failed = site(workers=4)
    failed.deploy(THIRD_FAILS["load"].code)
    with failed.load() as load, Watch(failed.view) as watch:
        load.wait_more()
        roll = failed.roll(RollState.FAILED)
        load.wait_more()
        pids = failed.view.wait_slots(4)
        check_failed(failed, roll, "could not load")
        check_works_again(failed, load)
    assert roll[2:4] == (2, 4)
    assert [pids[slot] == failed.pids[slot] for slot in range(4)] == [False, False, True, True]
    assert (watch.fewest_serving, watch.most_parked) == (4, 0)
    assert load.report.complaints(NOTICED_S) == []


def test_a_crash_after_ready(site: StartSite) -> None:
    """Only what the new process had in its hands when it died is lost."""
    failed = site(workers=4, cluster_roll_rollback="full", cluster_roll_observe=5)
    failed.deploy(CRASHES)
    with failed.load(pause=0.1) as load, Watch(failed.view) as watch:
        load.wait_more(100)
        roll = failed.roll(RollState.FAILED)
        load.wait_more(100)
        assert failed.view.wait_slots(4) == failed.pids
        check_failed(failed, roll, "code 9")
        check_works_again(failed, load)
    assert watch.fewest_serving >= 3
    old = {None, *failed.pids.values()}
    assert [str(each) for each in load.report.failures if each.pid in old] == []
    assert set(load.report.statuses) == {200}


def test_a_crash_after_ready_when_nothing_is_left_of_the_old(site: StartSite) -> None:
    """The roll has failed, and the server lives: a good deploy mends it."""
    failed = site(cluster_roll_observe=5)
    failed.deploy(CRASHES)
    roll = failed.roll(RollState.FAILED)
    check_failed(failed, roll, "code 9")
    failed.deploy(GOOD)
    failed.roll()
    failed.check_renewed(failed.pids)
    assert failed.server.get("/").status == 200


def test_ill_after_ready(site: StartSite) -> None:
    """Healthy at first: it fails while it is observed."""
    code = f"import time\nbegun = time.monotonic()\n{ILL}".replace(
        '!= "/health":', '!= "/health" or time.monotonic() - begun < 2:'
    )
    failed = site(cluster_roll_rollback="full", cluster_roll_observe=20, **HEALTH)
    failed.deploy(code)
    with failed.load() as load, Watch(failed.view) as watch:
        failed.hup()
        failed.view.wait_roll(1, RollState.OBSERVING)
        roll = failed.view.wait_roll(1, RollState.FAILED)
        load.wait_more()
        assert failed.view.wait_slots(3) == failed.pids
    assert (watch.fewest_serving, watch.most_parked) == (3, 3)
    check_failed(failed, roll, "health")
    assert load.report.complaints(NOTICED_S) == []


# --- what is refused before anything happens -----------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_configuration(reset_site: Callable[..., Site], name: str) -> None:
    refused = reset_site()
    number = refused.view.roll.number + 1
    REFUSED[name](refused)
    with refused.load() as load:
        load.wait_more(50)
        refused.hup()
        check_refused(refused, number)
        load.wait_more(50)
        refused.configure()
        refused.roll()
        load.wait_more(50)
        refused.check_renewed(refused.pids)
    assert load.report.complaints(NOTICED_S) == []


def check_refused(refused: Site, number: int = 1) -> None:
    """One line and the board say so, and nothing else happens."""
    server = refused.server
    server.wait_for(lambda: refused.lines("Reload refused"), PATIENCE_S, "a refusal")
    (line,) = refused.lines("Reload refused")
    assert "[ERROR]" in line
    assert refused.view.wait_slots(3) == refused.pids
    roll = refused.view.wait_roll(number, RollState.FAILED)
    reason = roll.reason.removeprefix("the reload was refused: ")
    assert reason != roll.reason and f"Reload refused: {reason}" in line
    assert roll.replaced == 0


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_a_broken_configuration_of_gunicorns_own_workers(site: StartSite, kind: str) -> None:
    refused = site(worker_class=kind)
    REFUSED["syntax error"](refused)
    refused.hup()
    check_refused(refused)
    assert refused.server.get("/").status == 200


def test_an_address_in_use(site: StartSite) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        refused = site(bind=["127.0.0.1:0"], worker_class=STICKY)
        own = f"127.0.0.1:{refused.server.port}"
        refused.configure(bind=[own, taken])
        with refused.load() as load:
            refused.hup()
            check_refused(refused)
            load.wait_more()
        assert load.report.complaints() == []
        assert refused.server.get("/").status == 200
