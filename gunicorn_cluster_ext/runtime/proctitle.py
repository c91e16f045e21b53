"""What processes call themselves in ``ps`` and ``top``: who they are, and what goes on.

    gunicorn: master [app] rolling 2/4
    gunicorn: worker 2 [app] draining

Set when something changes, never for a request.
"""

from __future__ import annotations

import sys

from gunicorn import util

from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState, State

_DOING = {
    State.BOOTING: "booting",
    State.READY: "",
    State.DRAINING: "draining",
    State.PARKED: "parked",
}

_who = ""


def set_worker(who: str) -> None:
    """This process is the worker ``who``, and boots. Called in the worker, after its fork."""
    global _who
    _who = who
    _set(who, _DOING[State.BOOTING])


def show_state(state: State) -> None:
    """Say what this worker does, unless the application has chosen a title of its own."""
    if state in _DOING and _is_gunicorns():
        _set(_who, _DOING[state])


def show_roll(master: str, roll: Roll) -> None:
    """Say how the roll stands. Called in the arbiter."""
    doing = ""
    if roll.state is RollState.ROLLING:
        doing = f"rolling {roll.replaced}/{roll.total}"
    elif roll.state is RollState.OBSERVING:
        doing = "observing"
    _set(master, doing)


def _set(who: str, doing: str) -> None:
    util._setproctitle(f"{who} {doing}".rstrip())


def _is_gunicorns() -> bool:
    if sys.platform == "darwin":  # where gunicorn sets none, because it is not safe after a fork
        return False
    from setproctitle import getproctitle

    return getproctitle().startswith("gunicorn: ")
