"""The documents name the settings, log lines, commands, events, states and files that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_cluster_ext import settings
from gunicorn_cluster_ext.cli import _COMMANDS
from gunicorn_cluster_ext.runtime.board.layout import State

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gunicorn_cluster_ext"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_the_table_of_settings_is_up_to_date() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert text.endswith("\n" + settings.table() + "\n"), "run: make settings"


def test_settings_that_are_named_exist() -> None:
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for name in re.findall(r"`cluster_(\w+)", path.read_text()):
            known = any(each == name or each.startswith(name) for each in settings.NAMES)
            assert known, f"{path.name}: cluster_{name}"


def logged() -> Iterator[str]:
    """Yield the text of every line that is logged at level info and above.

    Only the longest piece between two placeholders is kept.
    """
    levels = {"info", "warning", "error", "critical", "exception"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in levels and node.args and _is_log(node.func.value):
                words = node.args[0]
                if isinstance(words, ast.Constant) and isinstance(words.value, str):
                    yield max(re.split(r"%[-.\d]*\w", words.value), key=len).strip()


def _is_log(value: ast.expr) -> bool:
    return ast.unparse(value).split(".")[-1].strip("_").startswith("log")


LINES = sorted({words for words in logged() if len(words) > 3})


def test_there_are_lines() -> None:
    assert len(LINES) > 40
    assert "Roll failed:" in LINES


@pytest.mark.parametrize("words", LINES)
def test_every_line_is_explained(words: str) -> None:
    """The first words of each line are in the table of docs/operations.md."""
    table = OPERATIONS.split("## Logs")[1].split("\n## ")[0]
    beginning = " ".join(words.split()[:5]).rstrip("(").strip()
    assert beginning in " ".join(table.split()), "add it to docs/operations.md"


def test_every_command_is_there() -> None:
    for name in _COMMANDS:
        assert re.search(rf"gunicorn-cluster {name}|`{name}( \S+)?`", OPERATIONS), name


def test_every_event_is_there() -> None:
    source = "".join(path.read_text() for path in PACKAGE.glob("supervisor/*.py"))
    events = set(re.findall(r'(?:journal\.write|reporter\.event)\(\s*"([a-z ]+)"', source))
    assert len(events) > 5
    commands = " ".join((ROOT / "docs" / "commands.md").read_text().split())
    for event in events:
        assert f"`{event}`" in commands, event


def test_every_state_is_there() -> None:
    for state in set(State) - {State.GONE, State.READY}:
        assert f"`{state.name.lower()}`" in OPERATIONS or f"] {state.name.lower()}`" in OPERATIONS


def test_links_lead_somewhere() -> None:
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_files_that_are_named_exist() -> None:
    files = {f"/{path.relative_to(ROOT)}" for path in PACKAGE.rglob("*.py")}
    for path in (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"):
        for name in re.findall(r"[\w/]+\.py\b", path.read_text()):
            is_there = any(file.endswith(f"/{name}") for file in files) or (ROOT / name).exists()
            assert is_there, f"{path.name}: {name}"
