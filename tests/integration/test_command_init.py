"""gunicorn-cluster init: what it writes can be used."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gunicorn_cluster_ext.settings import Settings, read
from tests.harness.clients.command import run_command
from tests.harness.programs import StartGunicorn
from tests.harness.view import View

pytestmark = pytest.mark.one_gunicorn

NAME = "gunicorn_cluster_ext.conf"


def test_a_server_starts_with_it(
    gunicorn: StartGunicorn, new_directory: Callable[[], Path]
) -> None:
    directory = new_directory()
    done = run_command("init", directory=directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {NAME}\n", "")
    server = gunicorn("whoami:app", "-c", NAME, directory=directory, wait=False)
    assert View(server).wait_slots(4)


def test_every_setting_is_in_it_with_its_default(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    run_command("init", "mine.py", directory=directory)
    text = (directory / "mine.py").read_text()
    assert "gunicorn -c mine.py app:app" in text
    assert max(map(len, text.splitlines())) <= 100
    names: dict[str, object] = {}
    settings = re.findall(r"^# (cluster_\w+ = .*)$", text, re.MULTILINE)
    exec("\n".join(settings), names)
    names.pop("__builtins__")
    assert set(names) == {f"cluster_{field.name}" for field in dataclasses.fields(Settings)}
    assert read(names, {}) == Settings()
    for field in dataclasses.fields(Settings):
        assert " ".join(field.metadata["why"].split()[:6]) in re.sub(r"\n# ", " ", text)


def test_it_overwrites_nothing_unasked(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    path = directory / NAME
    path.write_text("precious")
    done = run_command("init", directory=directory)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gunicorn-cluster: {NAME}: already exists; --force overwrites it\n"
    assert path.read_text() == "precious"
    assert run_command("init", "--force", directory=directory).returncode == 0
    assert "workers = 4" in path.read_text()


def test_it_says_where_it_cannot_write(new_directory: Callable[[], Path]) -> None:
    done = run_command("init", "no/where.conf", directory=new_directory())
    assert done.returncode == 1
    assert done.stderr == (
        "gunicorn-cluster: cannot write no/where.conf: No such file or directory\n"
    )
