"""The lines above the table: which server this is, and its state. No I/O."""

from __future__ import annotations

from gunicorn_cluster_ext.cli.snapshot import Snapshot
from gunicorn_cluster_ext.cli.view.table import duration
from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState
from gunicorn_cluster_ext.runtime.server_info import ServerInfo


def lines(master: int, info: ServerInfo | None, snapshot: Snapshot, now: float) -> list[str]:
    """Return the lines. ``master`` is its pid, ``now`` the wall clock's time in seconds."""
    serving = f"{snapshot.serving} of {snapshot.target} workers serve"
    if snapshot.stopping:
        serving = f"the server is stopping, {serving}"
    crashes = f"{snapshot.recent_exits} recent crashes"
    if info is not None and info.restart_limit is not None:
        limit, seconds = info.restart_limit
        crashes = f"{snapshot.recent_exits} of {limit} crashes in {seconds:g} s"
    state = f"{serving}, {crashes}, {describe_roll(snapshot.roll)}"
    if info is None:
        return [f"master {master}", state]
    worker_class = info.worker_class.rpartition(".")[2]
    return [
        f"gunicorn {info.gunicorn}, gunicorn-cluster-ext {info.pack}, Python {info.python}, "
        f"master {master}, up {duration(now - info.started)}",
        f"{info.app} at {' '.join(info.addresses) or 'no address'}, "
        f"worker class {worker_class}, store {info.store}",
        state,
    ]


def describe_roll(roll: Roll) -> str:
    """Return the state of the last roll as one phrase."""
    match roll.state:
        case RollState.NONE:
            return "no roll yet"
        case RollState.ROLLING:
            return f"roll {roll.number}: {roll.replaced} of {roll.total} replaced"
        case RollState.OBSERVING:
            return f"roll {roll.number}: observing, {roll.replaced} of {roll.total} replaced"
        case RollState.COMMITTED:
            return f"roll {roll.number} committed"
    return f"roll {roll.number} failed: {roll.reason}"
