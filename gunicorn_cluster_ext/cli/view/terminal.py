"""Where a command prints: a terminal with rich, if both are there; else plain text."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from gunicorn_cluster_ext.cli.view import terminal
from gunicorn_cluster_ext.cli.view.table import GAP, TextTable

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


def show(head: Sequence[str], table: TextTable) -> None:
    """Print both."""
    on = console()
    if on is None:
        print("\n".join([*head, "", *table.lines()]))
    else:
        on.print("\n".join(head), markup=False)
        on.print()
        on.print(rendered(table))


def page(head: Sequence[str], table: TextTable) -> Any:
    """Both, for rich, in a screen of their own."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in head]
    return Group(*lines, Text(), rendered(table))


def rendered(table: TextTable) -> Any:
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


class Keyboard:
    """A context in which keys are read as they are pressed, and not shown."""

    def __enter__(self) -> Keyboard:
        self._file = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._file, termios.TCSAFLUSH, self._before)

    def wait(self, seconds: float) -> str:
        """The keys that are pressed; "" if none is in that time."""
        ready, _, _ = select.select([self._file], [], [], seconds)
        if not ready:
            return ""
        # Nothing to read means that the terminal is gone.
        return os.read(self._file, 64).decode(errors="replace") or QUIT


QUIT = "q"


class Progress:
    """A context in which ``show`` says how many of how many are done."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""
        self._bar = _bar()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._task = self._bar.add_task(self._title, total=None, doing="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, doing: str) -> None:
        """``doing``: what is done at present."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, doing=doing)
            return
        line = f"{self._title}: {doing}, {done} of {total}"
        if line != self._last:
            self._last = line
            print(line, flush=True)


def _bar() -> Any:
    console = terminal.console()
    if console is None:
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    doing = TextColumn("{task.fields[doing]}")
    title = TextColumn("{task.description}")
    return RichProgress(
        title,
        BarColumn(),
        MofNCompleteColumn(),
        doing,
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
