"""How long `gunicorn-cluster status` takes."""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.harness.servers.gunicorn import environment
from tests.harness.servers.site import Site, StartSite, for_each

pytestmark = pytest.mark.one_gunicorn

ROUNDS = 15
START = [sys.executable, "-c", "pass"]
STATUS = [sys.executable, "-m", "gunicorn_cluster_ext", "status", "--pid"]


def seconds(of: Site, command: Sequence[str]) -> float:
    """Return the processor time that a command takes. It waits for nothing."""
    env = environment(of.directory, None)
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_status_of_32_workers_under_load(site: StartSite) -> None:
    """It takes less than 100 ms beyond Python's own start; both are measured in turn."""
    watched = site(workers=32, threads=4)
    with watched.load(request=for_each(32), connections=32, pause=0.05) as load:
        load.wait_more()
        status = [*STATUS, str(watched.server.pid)]
        extra = [seconds(watched, status) - seconds(watched, START) for _ in range(ROUNDS)]
        assert len(set(load.report.pids)) == 32
    assert statistics.median(extra) < 0.1, ", ".join(f"{1e3 * each:.0f} ms" for each in extra)
