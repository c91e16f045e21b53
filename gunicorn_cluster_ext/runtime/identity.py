"""The identity of this worker, asked for live: a value read at import is wrong after a fork.

The arbiter *assigns* an identity just before it forks a worker. The child *adopts* it before any
other code runs (``os.register_at_fork``), so that even gunicorn's own line "Booting worker"
carries the worker id. After the fork the arbiter drops the assignment, so other processes that it
forks adopt nothing.
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
    """Return this worker's stable number, 0 to n-1; None outside a worker (arbiter, shell)."""
    return None if _current is None else _current.slot


def current_worker() -> Identity | None:
    """Return this worker's slot, generation and pid; None outside a worker."""
    return _current


def assign(slot: int, generation: int) -> None:
    """Make the child of the next fork the worker ``slot``. The arbiter calls this."""
    global _assigned
    _assigned = (slot, generation)


def watch() -> None:
    """Follow forks, and add the worker to every log record.

    The arbiter calls this before it logs its first line.
    """
    global _watching
    if not _watching:
        _watching = True
        os.register_at_fork(after_in_child=_adopt, after_in_parent=_drop_assignment)
        logging.setLogRecordFactory(_with_worker(logging.getLogRecordFactory()))


def _adopt() -> None:
    global _assigned, _current
    if _assigned is not None:
        _current = Identity(*_assigned, os.getpid())
        os.environ[ID_VARIABLE] = str(_current.slot)
        _assigned = None


def _drop_assignment() -> None:
    global _assigned
    _assigned = None


def _with_worker(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """Return a log record factory whose records name the worker that wrote them.

    The fields ``worker_id`` and ``worker_generation`` are for any logging configuration
    (``%(worker_id)s``). They are strings, "-" in the arbiter: indexes of structured logs refuse a
    field that has a number in one record and text in another.
    """

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.worker_id = "-" if _current is None else str(_current.slot)
        record.worker_generation = "-" if _current is None else str(_current.generation)
        return record

    return make_record


class WorkerFormatter(logging.Formatter):
    """A formatter that puts ``[worker N]`` before the messages of workers.

    The arbiter's lines stay exactly as gunicorn writes them.
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
    """Make the handlers of ``logger`` that use gunicorn's own format name the worker.

    This does not change a user's own logging configuration, which can use the fields
    ``worker_id`` and ``worker_generation``.
    """
    for handler in logger.handlers:
        formatter = handler.formatter
        if type(formatter) is logging.Formatter and formatter._fmt == stock_format:
            handler.setFormatter(WorkerFormatter(stock_format, formatter.datefmt))
