"""How far something is: a bar in a terminal, a line for each step elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from gunicorn_cluster_ext.cli.view import terminal as screen


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
    console = screen.console()
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
