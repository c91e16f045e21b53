"""Settings that cannot be used stop the start, with a message that helps."""

import signal

import pytest

from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

# What is configured, and what the message must contain.
REFUSED = {
    "unknown": ("cluster_stiky = ['cookie']", ["cluster_stiky", "cluster_sticky?"]),
    "unknown, nothing near": ("cluster_xyzzy = 1", ["cluster_xyzzy", "cluster_head_timeout"]),
    "no rule": ("cluster_sticky = ['cokie']", ["cluster_sticky", "'cokie'", "hash:ip", "engineio"]),
    "no list": ("cluster_sticky = 5", ["cluster_sticky", "= 5", "list"]),
    "no strings": ("cluster_sticky = [5]", ["cluster_sticky", "[5]", "list of strings"]),
    "no kind": ("cluster_sticky = ['hash:colour:red']", ["'hash:colour:red'", "hash:header:NAME"]),
    "no name": ("cluster_sticky = ['hash:header:']", ["'hash:header:'", "hash:header:NAME"]),
    "no regex": ("cluster_sticky = ['hash:path:(']", ["'hash:path:('", "regular expression"]),
    "negative": ("cluster_threads = -1", ["cluster_threads", "-1", "1 to 10000", "range"]),
    "too many": ("cluster_slots = 5000", ["cluster_slots", "5000", "0 to 1000"]),
    "infinite": ("cluster_threads = float('inf')", ["cluster_threads", "inf", "1 to 10000"]),
    "not a number": (
        "cluster_head_timeout = float('nan')",
        ["cluster_head_timeout", "nan", "3600"],
    ),
    "huge": ("cluster_head_timeout = 10 ** 400", ["cluster_head_timeout", "0.1 to 3600"]),
    "half": ("cluster_slots = 2.5", ["cluster_slots", "2.5", "0 to 1000"]),
    "text": ("cluster_head_timeout = 'soon'", ["cluster_head_timeout", "'soon'", "0.1 to 3600"]),
    "boolean": ("cluster_threads = True", ["cluster_threads", "True", "not a number"]),
    "none": ("cluster_threads = None", ["cluster_threads", "None", "1 to 10000"]),
    "cookie": ("cluster_cookie = 'a b'", ["cluster_cookie", "'a b'", "cookie name"]),
    "no path": ("cluster_dir = 5", ["cluster_dir", "5", "not a path"]),
}

REFUSED_IN_ENVIRONMENT = {
    "unknown": ("COOKY", "x", ["GUNICORN_CLUSTER_COOKY", "cluster_cookie?"]),
    "text": ("THREADS", "many", ["cluster_threads", "'many'", "1 to 10000"]),
    "rules": ("STICKY", "cookie,hash:", ["cluster_sticky", "'hash:'", "separated by commas"]),
    "json": ("STICKY", '["cookie"', ["cluster_sticky", "Allowed"]),
    "empty": ("SLOTS", "", ["cluster_slots", "''", "0 to 1000"]),
}


def check_refused(server: Gunicorn, words: list[str]) -> None:
    assert server.wait_exit(PATIENCE_S) == 1, server.report("status")
    log = server.log_text()
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if "[ERROR]" in line]
    for word in words:
        assert word in line
    assert "Booting worker" not in log
    assert not list(server.directory.glob("gunicorn-cluster-*"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(gunicorn: StartGunicorn, name: str) -> None:
    line, words = REFUSED[name]
    server = gunicorn("whoami:app", "-k", STICKY, config=line, wait=False)
    check_refused(server, words)


@pytest.mark.parametrize("name", REFUSED_IN_ENVIRONMENT)
def test_refused_in_the_environment(gunicorn: StartGunicorn, name: str) -> None:
    variable, value, words = REFUSED_IN_ENVIRONMENT[name]
    env = {f"GUNICORN_CLUSTER_{variable}": value}
    check_refused(gunicorn("whoami:app", "-k", STICKY, env=env, wait=False), words)


@pytest.mark.parametrize(
    "args",
    [
        ("-c", "python:gunicorn_cluster_ext.conf"),
        ("-c", "python:gunicorn_cluster_ext.conf", "-k", "sync"),
    ],
    ids=["sticky", "sync"],
)
def test_refused_by_the_ready_made_configuration(
    gunicorn: StartGunicorn, args: tuple[str, ...]
) -> None:
    server = gunicorn("whoami:app", *args, env={"GUNICORN_CLUSTER_THREDS": "5"}, wait=False)
    check_refused(server, ["GUNICORN_CLUSTER_THREDS", "cluster_threads?"])


def test_the_environment_wins_over_the_file(gunicorn: StartGunicorn) -> None:
    server = gunicorn(
        "whoami:app",
        *("-k", STICKY),
        config="cluster_cookie = 'from_the_file'\ncluster_threads = 3\ncluster_slots = 4\n",
        env={
            "GUNICORN_CLUSTER_COOKIE": "from_the_environment",
            "GUNICORN_CLUSTER_THREADS": "5",
            # What Kubernetes sets for a service called "gunicorn-cluster" is no setting.
            "GUNICORN_CLUSTER_SERVICE_HOST": "192.0.2.1",
            "GUNICORN_CLUSTER_PORT_8000_TCP_ADDR": "192.0.2.1",
        },
    )
    view = View(server)
    view.wait_slots(1)
    assert server.get("/").cookies().keys() == {"from_the_environment"}
    assert view.slots()[0].words["threads"] == 5
    assert view.capacity == 4


def test_rules_from_the_environment(gunicorn: StartGunicorn) -> None:
    server = gunicorn(
        "whoami:app",
        *("-k", STICKY, "-w", "2"),
        env={"GUNICORN_CLUSTER_STICKY": '["hash:path:^/(a|b),", "cookie"]'},
    )
    View(server).wait_slots(2)
    for slot in (0, 1):
        assert server.get("/", cookie=f"gunicorn_worker={slot}").json()["worker"] == slot
    everywhere = {
        server.get("/a,", cookie=f"gunicorn_worker={slot}").json()["worker"] for slot in (0, 1)
    }
    assert len(everywhere) == 1


def test_new_settings_on_reload(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", STICKY, config="cluster_cookie = 'one'\nworkers = 2\n")
    view = View(server)
    view.wait_slots(2, generation=1)
    assert server.get("/").cookies().keys() == {"one"}
    server.config_path.write_text("cluster_cookie = 'two'\nworkers = 2\n")
    server.signal(signal.SIGHUP)
    view.wait_slots(2, generation=2)
    assert server.get("/").cookies().keys() == {"two"}
    assert server.get("/", cookie="two=1").json()["worker"] == 1


@pytest.mark.parametrize("bad", ["cluster_stiky = ['cookie']", "cluster_threads = 'many'"])
def test_a_bad_setting_on_reload_changes_nothing(gunicorn: StartGunicorn, bad: str) -> None:
    good = "cluster_cookie = 'own'\ncluster_threads = 7\nworkers = 2\n"
    server = gunicorn("whoami:app", "-k", STICKY, config=good)
    view = View(server)
    view.wait_slots(2, generation=1)
    server.config_path.write_text(bad + "\nworkers = 2\n")
    server.signal(signal.SIGHUP)
    name = bad.split()[0]
    wait_until(lambda: f"refused: {name}" in server.log_text(), PATIENCE_S, "the complaint")
    assert "Nothing has changed." in server.log_text()
    view.wait_slots(2, generation=1)
    assert view.slots()[0].words["threads"] == 7
    assert server.get("/").cookies().keys() == {"own"}
    assert "Traceback" not in server.log_text()

    server.config_path.write_text(good.replace("own", "new"))
    server.signal(signal.SIGHUP)
    wait_until(lambda: "new" in server.get("/").cookies(), PATIENCE_S, "the new settings")
