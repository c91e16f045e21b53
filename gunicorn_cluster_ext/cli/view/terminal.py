"""Output to a terminal, with rich if it is installed, else plain text; keys and progress.

rich is imported only for a terminal, because its import is slow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gunicorn_cluster_ext.cli.view.table import GAP, TextTable

#: The key that ends ``top``.
QUIT = "q"

_STYLES = {
    "ready": "green",
    "booting": "yellow",
    "draining": "cyan",
    "parked": "cyan",
    "waiting": "red",
}


def console() -> Any:
    """Return rich's console, or None without a terminal or without rich."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def width() -> int | None:
    """Return the width of the terminal in characters, or None without a terminal."""
    if not sys.stdout.isatty():
        return None
    chosen = os.environ.get("COLUMNS", "")
    return int(chosen) if chosen.isdigit() else os.get_terminal_size(sys.stdout.fileno()).columns


def show(head: Sequence[str], table: TextTable) -> None:
    """Print the lines of ``head`` and the table."""
    rich_console = console()
    if rich_console is None:
        print("\n".join([*head, "", *table.lines()]))
    else:
        rich_console.print("\n".join(head), markup=False)
        rich_console.print()
        rich_console.print(_styled(table))


def page(head: Sequence[str], table: TextTable) -> Any:
    """Return the lines of ``head`` and the table for rich, to fill a screen."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in head]
    return Group(*lines, Text(), _styled(table))


def _styled(table: TextTable) -> Any:
    """Return the table for rich, whose own tables need 18 ms for 32 workers where this needs 2."""
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
    import json

    print(json.dumps(value, indent=2))


@contextmanager
def keyboard() -> Iterator[Callable[[float], str]]:
    """Read keys when they are pressed, without echo, until the end of the context.

    It yields a function that waits some seconds for keys, and returns "" if none was pressed.
    """
    import select  # only top needs these modules
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def wait(seconds: float) -> str:
        if not select.select([file], [], [], seconds)[0]:
            return ""
        # An empty read means that the terminal is gone.
        return os.read(file, 64).decode(errors="replace") or QUIT

    tty.setcbreak(file)
    try:
        yield wait
    finally:
        termios.tcsetattr(file, termios.TCSAFLUSH, before)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar, or plain lines without a terminal, until the end of the context.

    It yields a function of: how many are done, of how many, and what is being done now.
    """
    rich_console = console()
    if rich_console is None:
        last = ""

        def show_line(done: int, total: int, doing: str) -> None:
            nonlocal last
            line = f"{title}: {doing}, {done} of {total}"
            if line != last:
                last = line
                print(line, flush=True)

        yield show_line
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
        console=rich_console,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None, doing="")

        def show_bar(done: int, total: int, doing: str) -> None:
            bar.update(task, completed=done, total=total, doing=doing)

        yield show_bar
