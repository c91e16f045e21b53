"""What fails inside the master costs one piece of its work."""

import os
import resource
import signal

from gunicorn_cluster_ext.runtime.board.layout import (
    HEADER_WORDS,
    ROW_WORDS,
    SEATS_PER_SLOT,
    WORD_BYTES,
    Word,
)
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S
from tests.harness.waiting import wait_until

HEALTH = {"cluster_health_path": "/", "cluster_health_interval": 0.2}


def limit_files(pid: int, limit: int) -> None:
    """Let new file descriptors of the process `pid` have numbers below `limit` only."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


def serves(served: Site) -> bool:
    return served.server.get("/").status == 200


def test_a_word_on_the_board_that_is_no_state(site: StartSite) -> None:
    """The workers' user may be less trusted than the master, and writes the board."""
    served = site()
    index = HEADER_WORDS + SEATS_PER_SLOT * ROW_WORDS + Word.STATE
    with served.view.path.open("r+b") as file:
        file.seek(index * WORD_BYTES)
        file.write((77).to_bytes(8, "little"))
    assert served.command("status").returncode == 0
    os.kill(served.pids[0], signal.SIGKILL)
    served.view.wait_generation(0, 2)
    os.kill(served.pids[1], signal.SIGKILL)
    served.view.wait_generation(1, 2)
    assert serves(served)
    assert served.view.faults == 0


def test_a_master_without_file_descriptors(site: StartSite) -> None:
    """It cannot check the health of its workers, nor start one."""
    served = site(cluster_restart_delay=0.2, **HEALTH)
    wait_until(lambda: served.lines("Control socket listening"), PATIENCE_S, "the whole start")
    wait_until(lambda: served.lines("All 3 workers serve"), PATIENCE_S, "the whole start")
    limit, _ = resource.prlimit(served.server.pid, resource.RLIMIT_NOFILE)
    limit_files(served.server.pid, 3)
    wait_until(lambda: served.lines("Monitoring the workers failed"), PATIENCE_S, "a fault")
    served.server.signal(signal.SIGTTIN)
    wait_until(lambda: served.lines("Starting worker 3 failed"), PATIENCE_S, "a failed start")
    assert serves(served)
    limit_files(served.server.pid, limit)
    served.view.wait_slots(4)
    assert len(served.lines("Monitoring the workers failed")) == 1, "logged once a minute"
    served.roll()


def test_a_second_master_that_cannot_start(site: StartSite) -> None:
    served = site(hooks="def pre_exec(server):\n    raise KeyError('DEPLOY_TOKEN')\n")
    served.server.signal(signal.SIGUSR2)
    wait_until(
        lambda: served.lines("has exited; this one continues"), PATIENCE_S, "the first master"
    )
    assert served.lines("DEPLOY_TOKEN")
    assert served.view.wait_slots(3) == served.pids
    served.hooks = ""
    served.configure()
    served.roll()
