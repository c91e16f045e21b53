"""Decisions are pure. (The order of the rooms is import-linter's: see pyproject.toml.)"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "gunicorn_cluster_ext"
PURE = {
    "bus/send_queue",
    "bus/framing",
    "cache/http_responses",
    "codec",
    "routing/balance",
    "routing/head",
    "routing/learned_table",
    "routing/proxy_headers",
    "routing/responses",
    "routing/rules",
    "routing/tags",
    "session/tracked_fields",
    "supervisor/actions",
    "supervisor/backoff",
    "supervisor/exits",
    "supervisor/lifecycle",
    "supervisor/recycling",
    "supervisor/rolling",
    "supervisor/slots",
}
IMPURE = {"gunicorn", "os", "socket", "time", "threading", "select", "mmap"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


def test_decisions_do_no_io() -> None:
    for name in PURE:
        used = {each.split(".")[0] for each in imports(PACKAGE / f"{name}.py")}
        assert not used & IMPURE, name
