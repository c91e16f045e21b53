"""The lines above the table: what the server is, and how it stands. No I/O."""

from __future__ import annotations

from gunicorn_cluster_ext.cli.snapshot import Snapshot
from gunicorn_cluster_ext.cli.view.table import duration
from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from gunicorn_cluster_ext.runtime.server_info import ServerInfo


def lines(master: int, about: ServerInfo | None, snapshot: Snapshot, wall: float) -> list[str]:
    """``wall`` is the wall clock's time."""
    first = f"master {master}"
    if about is None:
        return [first, _now(snapshot, None)]
    what = f"gunicorn {about.gunicorn}, gunicorn-cluster-ext {about.pack}, Python {about.python}"
    up = f"up {duration(wall - about.started)}"
    where = " ".join(about.addresses) or "no address"
    kind = about.worker_class.rpartition(".")[2]
    return [
        f"{what}, {first}, {up}",
        f"{about.app} at {where}, worker class {kind}, store {about.store}",
        _now(snapshot, about),
    ]


def _now(snapshot: Snapshot, about: ServerInfo | None) -> str:
    serving = f"{snapshot.serving} of {snapshot.target} workers serve"
    if snapshot.stopping:
        serving = f"the server ends, {serving}"
    limit = about.restart_limit if about is not None else None
    crashes = f"{snapshot.recent_exits} recent crashes"
    if limit is not None:
        crashes = f"{snapshot.recent_exits} of {limit[0]} crashes in {limit[1]:g} s"
    return f"{serving}, {crashes}, {roll_words(snapshot.roll)}"


def roll_words(roll: Roll) -> str:
    """How the last roll stands, as one phrase."""
    match roll.state:
        case RollState.NONE:
            return "no roll yet"
        case RollState.ROLLING:
            return f"roll {roll.number}: {roll.replaced} of {roll.total} replaced"
        case RollState.OBSERVING:
            return f"roll {roll.number} is observed, {roll.replaced} of {roll.total} replaced"
        case RollState.COMMITTED:
            return f"roll {roll.number} committed"
    return f"roll {roll.number} failed: {roll.reason}"
