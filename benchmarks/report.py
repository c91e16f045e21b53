"""Figures as text for a terminal, or as Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable

Row = tuple[str, ...]


def text_table(title: str, columns: Row, rows: list[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (columns, *rows)
    ]
    return "\n".join([title, *lines])


def markdown_table(title: str, columns: Row, rows: list[Row]) -> str:
    rule = ("---", *("--:" for _ in columns[1:]))
    lines = [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]
    return "\n".join([f"### {title[0].upper()}{title[1:]}", "", *lines])


def text_list(items: Iterable[str]) -> str:
    return "\n".join(items)


def markdown_list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
