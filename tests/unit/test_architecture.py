"""The tree of docs/architecture.md is the package, and imports point down it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gunicorn_cluster_ext"
PURE = {
    "backlog",
    "codec",
    "exits",
    "fields",
    "frames",
    "head",
    "learned",
    "learner",
    "limits",
    "load",
    "rates",
    "recycling",
    "responses",
    "rolling",
    "routing",
    "slots",
    "supervisor",
    "tagging",
    "tags",
    "trust",
}
IMPURE = {"gunicorn", "os", "socket", "time", "threading", "select", "mmap"}


def rooms() -> list[str]:
    """The names in the tree of the document, the uppermost first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("## The tree")[1].split("```")[1]
    return re.findall(r"^(\w+)(?:\.py|/)", tree, re.MULTILINE)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            if node.module == PACKAGE.name:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]


def test_the_tree_names_every_room() -> None:
    assert set(rooms()) == {room(path) for path in sources()}


def test_imports_point_down() -> None:
    order = rooms()
    for path in sources():
        ours = {name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE.name}.")}
        for below in ours & set(order) - {room(path)}:
            assert order.index(below) > order.index(room(path)), f"{path.name} imports {below}"


def test_decisions_do_no_io() -> None:
    for name in PURE:
        used = {each.split(".")[0] for each in imports(PACKAGE / f"{name}.py")}
        assert not used & IMPURE, name
