"""gunicorn-cluster metrics, of real servers."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.clients.command import run_command
from tests.harness.clients.scrape import Scrape
from tests.harness.servers.site import Site, StartSite

pytestmark = pytest.mark.one_gunicorn


def ask(site: Site, *arguments: str) -> str:
    done = site.command("metrics", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_prints_them(shared_site: StartSite) -> None:
    measured = shared_site()
    measured.server.get("/", Cookie="gunicorn_worker=1")
    seen = Scrape(ask(measured))
    assert seen.by("gunicorn_cluster_workers", "state")["ready"] == 3
    assert seen.by("gunicorn_cluster_worker_threads", "worker") == {"0": 8, "1": 8, "2": 8}
    choice = ("--pid", str(measured.server.pid))
    assert Scrape(ask(measured, *choice)).samples.keys() == seen.samples.keys()


def test_it_writes_them_for_a_textfile_collector(shared_site: StartSite) -> None:
    measured = shared_site()
    path = measured.directory / "gunicorn.prom"
    path.write_text("what was there before")
    assert ask(measured, "--output", str(path)) == ""
    assert Scrape(path.read_text()).get("gunicorn_cluster_workers_wanted") == 3
    assert not list(measured.directory.glob("gunicorn.prom?*")), "what it wrote at first is gone"


def test_it_says_what_is_wrong(shared_site: StartSite, tmp_path: Path) -> None:
    done = run_command("metrics", "--dir", str(tmp_path), directory=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("gunicorn-cluster: no server found (")
    done = shared_site().command("metrics", "--output", "/no/where.prom")
    assert done.returncode == 1
    assert done.stderr == (
        "gunicorn-cluster: cannot write /no/where.prom: No such file or directory\n"
    )


def test_it_says_what_to_install(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    (directory / "prometheus_client.py").write_text("raise ImportError\n")
    done = run_command("metrics", directory=directory, env={"PYTHONPATH": str(directory)})
    assert done.returncode == 1
    assert "pip install 'gunicorn-cluster-ext[metrics]'" in done.stderr
    assert done.stderr.count("\n") == 1 and sys.executable not in done.stderr
