"""Commands in a terminal of a certain width: what fits, colours, a progress bar."""

import os
from pathlib import Path

import pytest

from tests.harness.clients.command import command_line
from tests.harness.clients.terminal import Terminal
from tests.harness.servers.deploy import slow
from tests.harness.servers.gunicorn import environment
from tests.harness.servers.site import Site, StartSite

pytestmark = pytest.mark.one_gunicorn

GREEN = "\x1b[32m"


def shown(of: Site, *command: str, columns: int = 200, **env: str) -> Terminal:
    """A command that has ended."""
    line = command_line(*command, "--pid", str(of.server.pid))
    with Terminal(line, of.directory, environment(of.directory, env), columns) as terminal:
        terminal.wait_exit()
    return terminal


def rows(text: str) -> list[str]:
    """The table, with its titles."""
    return [line.rstrip() for line in text.partition("\n\n")[2].splitlines() if line.strip()]


def without_rich(directory: Path) -> dict[str, str]:
    """An environment in which rich is not installed."""
    (directory / "rich.py").write_text("raise ImportError('no rich here')\n")
    path = environment(directory, None)["PYTHONPATH"]
    return {"PYTHONPATH": os.pathsep.join([str(directory), path])}


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
@pytest.mark.parametrize(
    ("columns", "there", "dropped"),
    [
        (200, ["LAST REASON", "OUT", "WS", "GEN"], []),
        (98, ["LAST REASON", "REQUESTS", "RSS"], ["OUT"]),
        (80, ["LAST REASON", "REQ/S", "RSS", "RESTARTS"], ["GEN", "OUT", "WS"]),
        (40, ["ID", "PID", "STATE", "BUSY"], ["RSS", "CPU", "UPTIME"]),
        (12, ["ID", "STATE"], ["PID"]),
    ],
)
def test_columns_fit(
    shared_site: StartSite,
    tmp_path: Path,
    columns: int,
    there: list[str],
    dropped: list[str],
    rich: bool,
) -> None:
    watched = shared_site()
    env = {} if rich else without_rich(tmp_path)
    terminal = shown(watched, "status", columns=columns, **env)
    titles, *workers = rows(terminal.text)
    assert terminal.status == 0
    assert all(word in titles for word in there)
    assert not any(word in titles.split() for word in dropped)
    assert len(workers) == 3
    assert max(map(len, [titles, *workers])) <= columns


def test_colours_are_for_terminals(shared_site: StartSite, tmp_path: Path) -> None:
    watched = shared_site()
    assert GREEN in shown(watched, "status").raw
    assert GREEN not in shown(watched, "status", NO_COLOR="1").raw
    assert "\x1b" not in shown(watched, "status", **without_rich(tmp_path)).raw
    assert "\x1b" not in watched.command("status").stdout


def test_a_roll_has_a_bar(site: StartSite) -> None:
    rolled = site()
    rolled.deploy(slow(0.3))
    terminal = shown(rolled, "roll")
    assert terminal.status == 0
    assert "━" in terminal.raw and "2/3" in terminal.text
    assert terminal.text.rstrip().endswith("s (roll 1)")
    rolled.deploy("import no_such_module\n")
    terminal = shown(rolled, "roll")
    assert terminal.status == 1
    assert "gunicorn-cluster: roll 2 failed: worker 0 could not load" in terminal.text
    assert "\x1b[?25h" in terminal.raw, "the cursor is back"
