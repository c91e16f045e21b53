"""prometheus_client's multiprocess files, one set per seat instead of one per process.

With ``PROMETHEUS_MULTIPROC_DIR`` prometheus_client keeps the metrics of a process in files that
are named by its pid, and sums all files, so every restart leaves files behind. One process at a
time holds a seat, so each process takes over the files of the one before it, with their counts.
(Files per slot would not do: two processes of a slot write at once while one drains.) The names
contain the master's pid, because two servers may share the directory (USR2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from gunicorn_cluster_ext.runtime.import_hook import when_imported

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class _Worker(NamedTuple):
    """A worker: its pid, and the identifier in the names of its seat's files."""

    pid: int
    identifier: str


_worker = _Worker(0, "")


def watch() -> None:
    """Name the files by seat. The arbiter calls this before it loads an application."""
    when_imported("prometheus_client.values", _name_by_seat)


def _name_by_seat(values: Any) -> None:
    """Patch ``prometheus_client.values`` in the process that has imported it."""
    if DIRECTORY_VARIABLE in os.environ:
        values.ValueClass = values.MultiProcessValue(process_identifier=identifier)


def join(master: int, seat: int) -> None:
    """Use the files of ``seat`` from now on. The worker calls this after its fork."""
    global _worker
    _worker = _Worker(os.getpid(), _identifier(master, seat))


def identifier() -> int | str:
    """Return the identifier of this process's files. prometheus_client asks at each change.

    A process that a worker has forked writes at the same time as the worker, so it has its own.
    """
    pid = os.getpid()
    return _worker.identifier if pid == _worker.pid else pid


def _identifier(master: int, seat: int) -> str:
    return f"{master}-seat{seat}"


def forget_live(master: int, seat: int) -> None:
    """Remove the gauges that last as long as their process (``live...``).

    The arbiter calls this when the process in ``seat`` has exited. The other files stay.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        for path in Path(directory).glob(f"gauge_live*_{_identifier(master, seat)}.db"):
            path.unlink(missing_ok=True)
