"""prometheus_client's files by seat. Each test has its own process, as nothing undoes the patch."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.forks import in_fresh_interpreter

START = "import json, os\nfrom gunicorn_cluster_ext.runtime import prometheus_files\n"
COUNT = """
from prometheus_client import Counter
counter = Counter("seen", "Seen")
counter.inc()
"""
REPORT = """
print(json.dumps([os.getpid(), sorted(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]))]))
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def run(code: str) -> Any:
    return json.loads(in_fresh_interpreter(START + code + REPORT))


def test_a_worker_counts_in_the_files_of_its_seat(directory: Path) -> None:
    _, files = run("prometheus_files.watch()\nprometheus_files.join(4711, 5)\n" + COUNT)
    assert files == ["counter_4711-seat5.db"]


def test_so_does_a_worker_with_a_preloaded_application(directory: Path) -> None:
    code = """
if not (pid := os.fork()):
    prometheus_files.join(4711, 5)
    counter.inc()
    os._exit(0)
os.waitpid(pid, 0)
"""
    pid, files = run("prometheus_files.watch()\n" + COUNT + code)
    assert set(files) == {f"counter_{pid}.db", "counter_4711-seat5.db"}


def test_so_does_a_worker_whose_configuration_has_imported_the_client(directory: Path) -> None:
    """It does so for mark_process_dead, as prometheus_client documents it."""
    code = (
        "from prometheus_client import multiprocess\n"
        "prometheus_files.watch()\nprometheus_files.join(4711, 5)\n"
    )
    assert run(code + COUNT)[1] == ["counter_4711-seat5.db"]


def test_a_child_of_a_worker_has_its_own_files(directory: Path) -> None:
    """It writes at the same time as the worker."""
    code = """
if not (pid := os.fork()):
    counter.inc()
    os._exit(0)
os.waitpid(pid, 0)
os.environ["CHILD"] = str(pid)
"""
    child = "print(os.environ['CHILD'])"
    lines = in_fresh_interpreter(
        START
        + "prometheus_files.watch()\nprometheus_files.join(4711, 5)\n"
        + COUNT
        + code
        + child
        + REPORT
    )
    pid, report = lines.splitlines()
    assert set(json.loads(report)[1]) == {f"counter_{pid}.db", "counter_4711-seat5.db"}


def test_without_a_directory_nothing_changes() -> None:
    code = (
        "prometheus_files.watch()\nprometheus_files.join(1, 5)\n"
        + COUNT
        + "print(type(counter._value))"
    )
    assert "MutexValue" in in_fresh_interpreter(START + code)


def test_live_gauges_are_removed_with_their_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gunicorn_cluster_ext.runtime import prometheus_files

    gone = {"gauge_livesum_7-seat5.db", "gauge_liveall_7-seat5.db"}
    stay = {"gauge_livesum_7-seat55.db", "gauge_sum_7-seat5.db", "counter_7-seat5.db"}
    for name in gone | stay:
        (directory / name).touch()
    prometheus_files.forget_live(7, 5)
    assert {path.name for path in directory.iterdir()} == stay
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    prometheus_files.forget_live(7, 55)
    assert {path.name for path in directory.iterdir()} == stay
