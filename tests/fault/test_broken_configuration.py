"""A configuration that cannot be used never ends the server, whatever is wrong with it.

One server gets all of them, one after the other, under a load that never retries. After each the
old workers serve, and now and then a good reload shows that nothing is left of the bad ones.
"""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.servers.site import Site, StartSite, for_each
from tests.harness.view import ASGI, PATIENCE_S, STICKY, name_of
from tests.harness.waiting import wait_until

BASE: dict[str, Any] = {
    "bind": "127.0.0.1:0",
    "workers": 2,
    "cluster_restart_delay": 0.05,
    "graceful_timeout": 5,
}
GOOD_AFTER = 8


class Broken(NamedTuple):
    """What is wrong: settings, or text of the configuration file; and a word of the reason."""

    word: str
    text: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})


def hook(signature: str) -> str:
    return f"def {signature}:\n    raise KeyError('DEPLOY_TOKEN')\n"


REFUSED = {
    # the file
    "syntax": Broken("SyntaxError", "def (:\n"),
    "name": Broken("NameError", "no_such_name\n"),
    "import": Broken("ModuleNotFoundError", "import no_such_module\n"),
    "raises": Broken("DEPLOY_TOKEN", "raise KeyError('DEPLOY_TOKEN')\n"),
    "exits": Broken("SystemExit", "raise SystemExit(0)\n"),
    "exits with 3": Broken("3", "import sys\nsys.exit(3)\n"),
    # our settings
    "unknown setting": Broken("cluster_stiky", settings={"cluster_stiky": ["cookie"]}),
    "bad rule": Broken("cluster_sticky", settings={"cluster_sticky": ["hash:nothing"]}),
    "bad number": Broken("cluster_learn_ttl", settings={"cluster_learn_ttl": "soon"}),
    "bad store": Broken("cluster_store", settings={"cluster_store": "mysql://127.0.0.1"}),
    "no roll": Broken("cluster_roll_surge", settings={"cluster_roll_surge": 0}),
    # gunicorn's settings
    "bad integer": Broken("workers", settings={"workers": "many"}),
    "negative": Broken("workers", settings={"workers": -1}),
    "bad timeout": Broken("timeout", settings={"timeout": "soon"}),
    "no hook": Broken("pre_fork", settings={"pre_fork": 7}),
    "hook with other arguments": Broken("on_reload", "def on_reload():\n    pass\n"),
    "worker class": Broken("no_such", settings={"worker_class": "no_such.Worker"}),
    "worker class that is none": Broken("worker_class", settings={"worker_class": 7}),
    "logger class": Broken("no_such", settings={"logger_class": "no_such.Logger"}),
    "user": Broken("no_such_user", settings={"user": "no_such_user"}),
    "group": Broken("no_such_group", settings={"group": "no_such_group"}),
    # paths
    "chdir": Broken("nowhere", settings={"chdir": "/nowhere"}),
    "pid file without a directory": Broken("pidfile", settings={"pidfile": "/nowhere/pid"}),
    "pid file that is a directory": Broken("pidfile", settings={"pidfile": "/tmp"}),
    "worker_tmp_dir": Broken("nowhere", settings={"worker_tmp_dir": "/nowhere"}),
    "worker_tmp_dir that takes no file": Broken("", settings={"worker_tmp_dir": "/proc"}),
    "log file": Broken("log", settings={"errorlog": "/nowhere/error.log"}),
    "log configuration": Broken("log", settings={"logconfig": "/nowhere/logging.conf"}),
    # sockets
    "address of another machine": Broken("bind", settings={"bind": "192.0.2.1:8000"}),
    "socket without a directory": Broken("bind", settings={"bind": "unix:/nowhere/socket"}),
    "port": Broken("", settings={"bind": "127.0.0.1:99999"}),
    # hooks and constructors
    "on_reload raises": Broken("DEPLOY_TOKEN", hook("on_reload(server)")),
    "nworkers_changed raises": Broken(
        "DEPLOY_TOKEN", hook("nworkers_changed(server, new, old)"), {"workers": 3}
    ),
    "constructor raises": Broken(
        "DEPLOY_TOKEN",
        "from gunicorn_cluster_ext import Sticky\n"
        "class worker_class(Sticky):\n"
        "    def __init__(self, *args):\n"
        "        raise KeyError('DEPLOY_TOKEN')\n",
    ),
}
FAILED = {
    "pre_fork raises": Broken("DEPLOY_TOKEN", hook("pre_fork(server, worker)")),
    "post_fork raises": Broken("exit code 3", hook("post_fork(server, worker)")),
    "post_worker_init raises": Broken("exit code 3", hook("post_worker_init(worker)")),
}
#: These raise in a server that goes on.
SURVIVED = {
    "child_exit raises": Broken("child_exit", hook("child_exit(server, worker)")),
    "worker_exit raises": Broken("DEPLOY_TOKEN", hook("worker_exit(server, worker)")),
    "pre_exec raises": Broken("", hook("pre_exec(server)")),
    "when_ready raises": Broken("", hook("when_ready(server)")),
}


class Deploys:
    """Configurations that come one after the other, and are to leave no trace."""

    def __init__(self, served: Site) -> None:
        self.served = served
        self.settings = dict(served.settings)
        self.pids = served.pids

    def put(self, broken: Broken) -> None:
        self.served.settings = {**self.settings, **broken.settings}
        self.served.hooks = broken.text
        self.served.configure()
        self.served.hup()

    def check_unchanged(self, name: str) -> None:
        self.served.server.wait_for(
            lambda: self.served.view.wait_slots(len(self.pids)) == self.pids, PATIENCE_S, name
        )

    def recover(self) -> None:
        """A good reload replaces every worker."""
        self.served.settings, self.served.hooks = dict(self.settings), ""
        self.served.configure()
        self.served.roll()
        before, self.pids = self.pids, self.served.view.wait_slots(len(self.pids))
        assert not set(before.values()) & set(self.pids.values())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [STICKY, ASGI, "gthread"], ids=name_of)
def test_no_configuration_ends_the_server(site: StartSite, kind: str) -> None:
    served = site(worker_class=kind, **BASE)
    deploys = Deploys(served)
    with served.load(connections=4, request=for_each(2)) as load:
        for count, (name, broken) in enumerate(REFUSED.items(), 1):
            number = served.view.roll.number + 1
            deploys.put(broken)
            reason = served.view.wait_roll(number, RollState.FAILED).reason
            assert "refused" in reason and broken.word in reason, f"{name}: {reason}"
            deploys.check_unchanged(name)
            if count % GOOD_AFTER == 0:
                deploys.recover()
        for name, broken in FAILED.items():
            number = served.view.roll.number + 1
            deploys.put(broken)
            reason = served.view.wait_roll(number, RollState.FAILED).reason
            assert broken.word in reason, f"{name}: {reason}"
            deploys.check_unchanged(name)
            deploys.recover()
        for broken in SURVIVED.values():
            number = served.view.roll.number + 1
            deploys.put(broken)
            served.view.wait_roll(number)
            deploys.pids = served.view.wait_slots(2)
            deploys.recover()
            assert not broken.word or served.lines(broken.word)
    assert load.report.failures == []
    assert set(load.report.statuses) == {200}


def test_a_pid_file_of_another_process(site: StartSite) -> None:
    served = site(**BASE)
    other = served.directory / "other.pid"
    other.write_text(f"{os.getpid()}\n")
    deploys = Deploys(served)
    deploys.put(Broken("", settings={"pidfile": str(other)}))
    assert "pidfile" in served.view.wait_roll(1, RollState.FAILED).reason
    deploys.check_unchanged("a pid file of another process")
    assert other.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("is_good", [True, False], ids=["good", "broken"])
def test_the_old_release_is_gone(
    site: StartSite, new_directory: Callable[[], Path], is_good: bool
) -> None:
    """`chdir` is a symbolic link to a release, as with Capistrano; a deploy removes the old one."""
    root = new_directory()
    (root / "1").mkdir()
    (root / "2").mkdir()
    (root / "current").symlink_to(root / "1")
    served = site(chdir=str(root / "current"), **BASE)
    (root / "current").unlink()
    (root / "current").symlink_to(root / "2")
    (root / "1").rmdir()
    with served.load() as load:
        if is_good:
            served.roll()
        else:
            served.deploy("raise RuntimeError\n")
            served.roll(RollState.FAILED)
            assert served.view.wait_slots(2) == served.pids
        assert os.readlink(f"/proc/{served.server.pid}/cwd") == str(root / "2")
    assert load.report.failures == []


def test_a_start_that_fails_counts_against_its_slot(site: StartSite) -> None:
    """It waits as after a crash, is logged once, and the slot recovers."""
    text = (
        "import os\n"
        "def pre_fork(server, worker):\n"
        "    if os.path.exists('broken'):\n"
        "        raise KeyError('DEPLOY_TOKEN')\n"
    )
    served = site(hooks=text, chdir="", **{**BASE, "cluster_restart_delay": 0.2})
    (served.directory / "broken").touch()
    victim = served.view.pids()[1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: served.lines("Starting worker 1 failed"), PATIENCE_S, "a failed start")
    faults = served.view.faults
    served.server.signal(signal.SIGTTIN)
    wait_until(lambda: served.lines("Starting worker 2 failed"), PATIENCE_S, "another")
    assert faults < 20
    (served.directory / "broken").unlink()
    assert victim not in served.view.wait_slots(3).values()
    assert len(served.lines("Starting worker 1 failed")) == 1
