"""The titles of processes in ``ps`` and ``top``: the process, and what it is doing.

    gunicorn: master [app] rolling 2/4
    gunicorn: worker 2 [app] draining

They are set when a state changes, never for a request.
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

#: The title of this worker without its state.
_worker = ""


def set_worker(title: str) -> None:
    """Name this worker, which is booting. The worker calls this after its fork."""
    global _worker
    _worker = title
    _set(title, _DOING[State.BOOTING])


def show_state(state: State) -> None:
    """Show the state of this worker, unless the application has set a title of its own."""
    if state in _DOING and _is_ours():
        _set(_worker, _DOING[state])


def show_roll(master: str, roll: Roll) -> None:
    """Show the state of the roll. The arbiter calls this."""
    doing = ""
    if roll.state is RollState.ROLLING:
        doing = f"rolling {roll.replaced}/{roll.total}"
    elif roll.state is RollState.OBSERVING:
        doing = "observing"
    _set(master, doing)


def _set(title: str, doing: str) -> None:
    util._setproctitle(f"{title} {doing}".rstrip())


def _is_ours() -> bool:
    if sys.platform == "darwin":  # gunicorn sets no titles there: it is not safe after a fork
        return False
    from setproctitle import getproctitle

    return getproctitle().startswith("gunicorn: ")
