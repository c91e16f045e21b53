"""The life of a worker: open, READY, turns of its main loop, drain, close.

All methods run in the worker's main loop: in its main thread, its main greenlet, or a task.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

from gunicorn_cluster_ext.runtime.board.layout import State
from gunicorn_cluster_ext.workers.dispatch import Dispatcher
from gunicorn_cluster_ext.workers.handoff import C, Handoff
from gunicorn_cluster_ext.workers.head_reader import HeadReader
from gunicorn_cluster_ext.workers.listener import Listener
from gunicorn_cluster_ext.workers.membership import Drain, Membership

#: How often a request is tried again that only one process can serve, whose inbox is full.
RETRY_INTERVAL_S: Final = 0.01
#: How long a new connection may say nothing where gunicorn's ``keepalive`` does not say more.
FIRST_BYTE_TIMEOUT_S: Final = 5.0
#: How long the first workers wait for each other: an import that hangs must not stop its siblings.
START_TIMEOUT_S: Final = 5.0
START_INTERVAL_S: Final = 0.01
#: How often a worker that drains, is parked or has paused looks whether that is over.
DRAIN_INTERVAL_S: Final = 0.02
#: How long nothing is accepted when there are too many open files.
ACCEPT_PAUSE_S: Final = 0.5


class WorkerLifecycle(Dispatcher[C]):
    """A worker from the moment its application is loaded. A worker class adds the hooks."""

    #: How long the main loop may wait when there is nothing to do.
    turn_interval_s = 1.0
    #: How long before the drain timeout ``end_drain`` is called.
    farewell_s = 0.0

    #: True once the worker was ordered to finish. Unlike gunicorn's ``alive``, which is set to
    #: False then, this closes no connection: that depends on whether another worker can take it.
    leaving = False

    #: When the last request ended (monotonic).
    finished = 0.0

    alive: bool
    cfg: Any
    log: Any
    notify: Any
    sockets: Any

    # --- hooks: the main loop -----------------------------------------------------------------

    def open_loop(self) -> None:
        """Prepare the main loop. After this ``turn`` works."""
        raise NotImplementedError

    async def turn(self, timeout: float) -> bool:
        """Serve events for ``timeout`` seconds at most. Return False to end at once."""
        raise NotImplementedError

    def wake(self) -> None:
        """Let ``turn`` return soon. Also called by signal handlers."""
        raise NotImplementedError

    def set_accepting(self, accepting: bool) -> None:
        """Accept connections or leave them to others. Called at each turn."""
        raise NotImplementedError

    def idle(self) -> list[C]:
        """Return the connections that can be left to others: no request is in progress there."""
        raise NotImplementedError

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections there are, and on how many no request is in progress."""
        raise NotImplementedError

    async def end_drain(self) -> None:
        """End what has not finished in time."""

    def stop_events(self) -> None:
        """Let nothing more arrive. The state on the board is GONE."""
        raise NotImplementedError

    def close_loop(self) -> None:
        """Close what ``open_loop`` has opened. All connections were left."""

    # --- the life -------------------------------------------------------------------------------

    async def live(self) -> None:
        """Serve until the worker is ordered to finish, then drain."""
        self.open()
        try:
            self.notify()
            self.membership.set_state(State.READY)
            # Nothing is accepted until the server's first workers are all ready.
            deadline = time.monotonic() + START_TIMEOUT_S
            while self.alive and not self.leaving and time.monotonic() < deadline:
                if not self.membership.awaits_siblings() or not await self.turn(START_INTERVAL_S):
                    break
            while self.alive and not self.leaving:
                self.membership.apply_order()
                serves = self.membership.serves
                if not serves:
                    self.handoff.evacuate_idle(self.idle())
                accepting = serves and time.monotonic() >= self._accept_after
                self.set_accepting(accepting)
                if not await self.turn(self.turn_interval_s if accepting else DRAIN_INTERVAL_S):
                    break
            await self.drain()
        finally:  # also when a signal ends the process: its threads must end too
            self._close()

    def open(self) -> None:
        """Prepare to serve. The application is loaded."""
        board = self.shared.board
        self.words, self.row = board.words, board.row_start(self.place.seat)
        self._may_speak_http2 = getattr(self.cfg, "http2_cleartext", "off") != "off"
        self._accept_after = 0.0
        self.blocked = {}
        self.head_reader = HeadReader(self.cfg)
        self.membership = Membership(self.shared, self.place, self.cfg)
        self.handoff = Handoff(
            self.membership,
            self.log,
            unpack=self.unpack,
            resume=self.resume_handed,
            drop=self.drop,
        )
        self.listeners = [Listener(sock, self._pause_accepting) for sock in self.sockets]
        self.open_loop()

    def _pause_accepting(self) -> None:
        """Accept nothing for a while. The process has no file descriptor left."""
        self.log.error(
            "Too many open files: accepting nothing for %s s. Raise ulimit -n.", ACCEPT_PAUSE_S
        )
        self._accept_after = time.monotonic() + ACCEPT_PAUSE_S
        self.set_accepting(False)

    async def drain(self) -> None:
        """Finish the requests in progress, and leave connections to other workers."""
        now = time.monotonic()
        drain = Drain(self.membership, now)
        self.set_accepting(False)
        self.membership.set_state(State.DRAINING)
        while not drain.is_over(now + self.farewell_s):
            has_heir = self.handoff.evacuate_idle(self.idle())
            # Where this is False, gunicorn answers with "Connection: close", and ends HTTP/2
            # connections.
            self.alive = has_heir and not self._may_speak_http2
            if drain.may_exit(*self.count_connections(), self.finished, now):
                return
            if not await self.turn(DRAIN_INTERVAL_S):
                return
            now = time.monotonic()
        await self.end_drain()

    def _close(self) -> None:
        self.membership.set_state(State.GONE)
        self.alive = False
        self.stop_events()
        self.handoff.close(lambda: (*self.idle(), *self.blocked))
        self.close_loop()

    # --- signals --------------------------------------------------------------------------------

    def init_signals(self) -> None:
        super().init_signals()  # type: ignore[misc]
        # As gunicorn does for SIGTERM: libraries that know no EINTR are not to be disturbed.
        signal.siginterrupt(signal.SIGWINCH, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish."""
        self.leaving = True
        self.wake()

    def handle_winch(self, sig: int, frame: Any) -> None:
        """SIGWINCH: the arbiter has written an order on the board, which the main loop reads."""
        self.wake()


def run_blocking(life: Coroutine[Any, Any, None]) -> None:
    """Run a life whose turns block, so that it never suspends."""
    try:
        life.send(None)
    except StopIteration:
        return
    raise RuntimeError("a turn of a blocking main loop has suspended")
