"""Where a command prints: a terminal with rich, if both are there; else plain text."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from gunicorn_cluster_ext.cli.view.table import GAP, Table

_STYLES = {
    "ready": "green",
    "booting": "yellow",
    "draining": "cyan",
    "parked": "cyan",
    "waiting": "red",
}


def console() -> Any:
    """rich's console, or None. rich is imported for a terminal only: that takes some time."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def width() -> int | None:
    """Of the terminal, in characters; None where there is no terminal."""
    if not sys.stdout.isatty():
        return None
    chosen = os.environ.get("COLUMNS", "")
    return int(chosen) if chosen.isdigit() else os.get_terminal_size(sys.stdout.fileno()).columns


def show(head: Sequence[str], table: Table) -> None:
    """Print both."""
    on = console()
    if on is None:
        print("\n".join([*head, "", *table.lines()]))
    else:
        on.print("\n".join(head), markup=False)
        on.print()
        on.print(rendered(table))


def page(head: Sequence[str], table: Table) -> Any:
    """Both, for rich, in a screen of their own."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in head]
    return Group(*lines, Text(), rendered(table))


def rendered(table: Table) -> Any:
    """For rich. Its own tables take 18 ms for 32 workers instead of 2; widths are known already."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop")
    for number, cells in enumerate(table.padded()):
        for cell in cells:
            text.append(cell, style=_STYLES.get(cell.strip(), "") if number else "bold")
            text.append(" " * GAP)
        text.right_crop(GAP)
        text.append("\n")
    text.right_crop(1)
    return text


def print_json(value: Any) -> None:
    """With two spaces for each level."""
    import json

    print(json.dumps(value, indent=2))
