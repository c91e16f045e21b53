"""The table of status and top: its columns, which of them fit, and the units of numbers. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from gunicorn_cluster_ext.cli.snapshot import Worker

#: Characters between two columns.
GAP = 2


class Column(NamedTuple):
    """A column of the table.

    In a narrow terminal the columns with the highest ``rank`` are dropped first. A column with a
    ``min_width`` may be cut to it; without one it is not cut.
    """

    title: str
    rank: int
    text: Callable[[Worker], str]
    is_text: bool = False  # aligned to the left; numbers are aligned to the right
    min_width: int = 0


def _word(name: str) -> Callable[[Worker], str]:
    return lambda worker: amount(worker.words[name]) if worker.words else ""


def _busy(worker: Worker) -> str:
    return f"{worker.words['busy']}/{worker.words['threads'] or '-'}" if worker.words else ""


COLUMNS = (
    Column("ID", 0, lambda worker: str(worker.slot)),
    Column("PID", 1, lambda worker: str(worker.pid or "")),
    Column("GEN", 7, _word("generation")),
    Column("STATE", 0, lambda worker: worker.state, is_text=True),
    Column("UPTIME", 4, lambda worker: duration(worker.uptime) if worker.words else ""),
    Column("BUSY", 2, _busy),
    Column("REQUESTS", 6, _word("requests")),
    Column("REQ/S", 2, lambda worker: rate(worker.rate) if worker.words else ""),
    Column("CONNS", 6, _word("connections")),
    Column("WS", 8, _word("websockets")),
    Column("IN", 9, _word("handed_in")),
    Column("OUT", 9, _word("handed_out")),
    Column("CPU", 4, lambda worker: "" if worker.load is None else f"{100 * worker.load:.0f}%"),
    Column("RSS", 3, lambda worker: size(worker.memory) if worker.memory else ""),
    Column("RESTARTS", 3, lambda worker: str(worker.exits.total)),
    Column("LAST REASON", 5, lambda worker: worker.exits.reason, is_text=True, min_width=16),
)


class TextTable(NamedTuple):
    """The cells of a table by row, with the columns and their widths in characters."""

    columns: list[Column]
    widths: list[int]
    rows: list[list[str]]

    def padded(self) -> list[list[str]]:
        """Return the padded cells of each line; the first line has the titles."""
        titles = [column.title for column in self.columns]
        return [
            [
                text.ljust(width) if column.is_text else text.rjust(width)
                for column, width, text in zip(self.columns, self.widths, texts, strict=True)
            ]
            for texts in (titles, *self.rows)
        ]

    def lines(self) -> list[str]:
        """Return the table as plain text."""
        return [(" " * GAP).join(cells).rstrip() for cells in self.padded()]


def table(
    workers: Sequence[Worker], width: int | None, columns: Sequence[Column] = COLUMNS
) -> TextTable:
    """Return the table of ``workers`` that fits into ``width`` characters; None: all columns."""
    cells = {column: [column.text(worker) for worker in workers] for column in columns}
    widths = {column: max(map(len, [column.title, *cells[column]])) for column in columns}
    if width is not None:
        widths = fitted(widths, width)
    rows = [
        [cells[column][index][:wide] for column, wide in widths.items()]
        for index in range(len(workers))
    ]
    return TextTable(list(widths), list(widths.values()), rows)


def fitted(widths: Mapping[Column, int], width: int) -> dict[Column, int]:
    """Return the widths of the columns that fit into ``width`` characters, the others dropped.

    Columns that may be cut share the rest.
    """
    least = {column: min(wide, column.min_width or wide) for column, wide in widths.items()}
    while (left := width - sum(least.values()) - GAP * (len(least) - 1)) < 0 and len(least) > 1:
        del least[max(least, key=lambda column: column.rank)]
    return {
        column: min(widths[column], wide + left) if column.min_width else wide
        for column, wide in least.items()
    }


def duration(seconds: float) -> str:
    """Return a duration in two units at most: ``12s``, ``3m 05s``, ``2h 03m``, ``5d 04h``."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3_600}h {whole % 3_600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3_600:02}h"


def size(count: int) -> str:
    """Return a number of bytes in MiB or GiB."""
    megabytes = count / (1 << 20)
    return f"{megabytes:.0f}M" if megabytes < 10_000 else f"{megabytes / 1024:.1f}G"


def amount(number: float) -> str:
    """Return a number in six characters at most, with a unit if it is large."""
    for unit in ("", "k", "M", "G"):
        if number < 10_000 or unit == "G":
            return f"{number:.0f}{unit}"
        number /= 1_000
    raise AssertionError


def rate(per_second: float) -> str:
    """Return a rate with one decimal place if it is small."""
    return f"{per_second:.1f}" if per_second < 100 else amount(per_second)
