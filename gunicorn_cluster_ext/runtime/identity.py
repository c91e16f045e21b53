"""Which worker is this? Answered live, because a value read at import is wrong after a fork.

The arbiter *assigns* an identity just before it forks; the child *adopts* it as the first
thing that runs after the fork (``os.register_at_fork``), so that even gunicorn's own
"Booting worker" line carries the worker id. The parent forgets the assignment again, so
other processes forked by the arbiter adopt nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

ID_VARIABLE = "GUNICORN_WORKER_ID"


class Identity(NamedTuple):
    """A worker: its slot (the worker id), the generation of its process, and its pid."""

    slot: int
    generation: int
    pid: int


_assigned: tuple[int, int] | None = None
_current: Identity | None = None
_watching = False


def worker_id() -> int | None:
    """This worker's stable number, 0 to n-1; None outside a worker (in the arbiter, a shell)."""
    return None if _current is None else _current.slot


def current_worker() -> Identity | None:
    """This worker's slot, generation and pid; None outside a worker."""
    return _current


def assign(slot: int, generation: int) -> None:
    """The next fork makes the worker ``slot``. Called in the arbiter."""
    global _assigned
    _assigned = (slot, generation)


def watch() -> None:
    """Follow forks, and have every log record say which worker wrote it.

    Called in the arbiter before it logs its first line.
    """
    global _watching
    if not _watching:
        _watching = True
        os.register_at_fork(after_in_child=_adopt, after_in_parent=_forget)
        logging.setLogRecordFactory(_stamping(logging.getLogRecordFactory()))


def _adopt() -> None:
    global _assigned, _current
    if _assigned is not None:
        _current = Identity(*_assigned, os.getpid())
        os.environ[ID_VARIABLE] = str(_current.slot)
        _assigned = None


def _forget() -> None:
    global _assigned
    _assigned = None


def _stamping(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A log record factory whose records say which worker wrote them.

    The fields are ``worker_id`` and ``worker_generation``, "-" in the arbiter, for use in
    any logging configuration (``%(worker_id)s``). Strings: what indexes structured logs refuses
    a field that has a number in one line and a word in another.
    """

    def stamp(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.worker_id = "-" if _current is None else str(_current.slot)
        record.worker_generation = "-" if _current is None else str(_current.generation)
        return record

    return stamp


class WorkerFormatter(logging.Formatter):
    """A formatter that puts ``[worker N]`` before the message of what a worker logs.

    Only lines of workers change; those of the arbiter stay exactly gunicorn's.
    """

    def __init__(self, fmt: str, datefmt: str | None) -> None:
        super().__init__(fmt, datefmt)
        self._worker_style = logging.PercentStyle(
            fmt.replace("%(message)s", "[worker %(worker_id)s] %(message)s")
        )

    def formatMessage(self, record: logging.LogRecord) -> str:
        if getattr(record, "worker_id", "-") == "-":
            return super().formatMessage(record)
        return self._worker_style.format(record)


def mark_log(logger: logging.Logger, stock_format: str) -> None:
    """Make ``logger``'s handlers name the worker, where they use gunicorn's own format.

    A user's own logging configuration is left alone: it has the fields ``worker_id`` and
    ``worker_generation`` to use as it likes.
    """
    for handler in logger.handlers:
        formatter = handler.formatter
        if type(formatter) is logging.Formatter and formatter._fmt == stock_format:
            handler.setFormatter(WorkerFormatter(stock_format, formatter.datefmt))
