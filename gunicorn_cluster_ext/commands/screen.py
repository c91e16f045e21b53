"""Where a command prints: a terminal with rich, if both are there; else plain text."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from gunicorn_cluster_ext.commands.columns import GAP, Table

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
    """For rich."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, width in zip(table.columns, table.widths, strict=True):
        side = "left" if column.is_text else "right"
        grid.add_column(column.title, justify=side, width=width, no_wrap=True)  # type: ignore
    for row in table.rows:
        grid.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    return grid


def print_json(value: Any) -> None:
    """With two spaces for each level."""
    import json

    print(json.dumps(value, indent=2))
