"""What becomes of each connection: the one path of decisions of all worker classes.

    accepted ---> start ---------.
    handed over -> resume_handed -+-> advance -> head? -> WAIT     need more
    readable --------------------'                   |
                                                     +-> SERVE    here
                                                     +-> SENT     to another worker
                                                     `-> BLOCKED  try again soon

A worker class implements each outcome as a hook. A hook that waits may block, as greenlets do.

**A request without an owner** is served where it arrives unless there is no room and a sibling has
some. One that opens an Engine.IO session or a WebSocket stays for long, so it goes to the least
loaded worker. What workers publish is stale by the time a burst is distributed: of 500 WebSockets
one of four workers got up to 231. With the connections that wait in the inboxes counted in (the
kernel knows: ``SIOCOUTQ``) each got 125. One without a value of the learn rules may start a
session, which shows only in its response: it moves when another worker is clearly less loaded or
has clearly fewer sessions. Of sixteen MCP sessions started at once on four workers, up to fourteen
had one worker before that, three to five since.

An event loop has no threads to run out of: a request leaves it when it has more than eight calls
in progress and another worker has less than half as many.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Final, Generic

from gunicorn_cluster_ext.routing.balance import clearly_less_loaded, least_loaded
from gunicorn_cluster_ext.routing.head import NEED_MORE, Head, Partial, unreadable_head
from gunicorn_cluster_ext.routing.rules import (
    Learned,
    Owner,
    Rule,
    find_owner,
    is_websocket_upgrade,
    starts_engineio_session,
)
from gunicorn_cluster_ext.runtime.board.layout import Place, Word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED, HandoffMessage
from gunicorn_cluster_ext.runtime.shared import Shared
from gunicorn_cluster_ext.workers.handoff import C, Handoff
from gunicorn_cluster_ext.workers.head_reader import HeadReader
from gunicorn_cluster_ext.workers.membership import Membership

#: After this many hand-offs without being served a request is served where it is, so that workers
#: that come and go do not pass it around for ever.
MAX_HOPS: Final = 2
#: Hand-offs that are read at once, so that they do not starve the other connections.
INBOX_BATCH: Final = 32
#: An event loop serves many requests at once, but what they do when they continue on it happens
#: one after the other. With fewer than this in progress it does not compare itself with siblings.
MIN_FAIR_SHARE: Final = 8


class Fate(enum.Enum):
    """What becomes of a request."""

    SERVE = 1  # it is to be served here
    SENT = 2  # another worker has the connection
    BLOCKED = 3  # only one process can serve it, and its inbox is full


class Dispatcher(Generic[C]):
    """Decides where requests are served. A worker class adds the hooks."""

    #: The arbiter sets these two in ``pre_fork``.
    shared: Shared
    place: Place

    membership: Membership
    head_reader: HeadReader
    handoff: Handoff[C]

    #: The sticky rules, and the words of the board that count their decisions: one for each rule,
    #: the last for none.
    rules: Sequence[Rule]
    tally: Sequence[int]

    #: Connections that are BLOCKED, each with its deadline (monotonic).
    blocked: dict[C, float]

    # --- hooks: what a connection can be told -------------------------------------------------

    def unpack(self, message: HandoffMessage, fd: int) -> C:
        """Return the connection that another worker has packed into ``message``."""
        raise NotImplementedError

    def start(self, conn: C) -> None:
        """Begin with a connection that was accepted: read what is there, then ``advance``."""
        raise NotImplementedError

    def wait(self, conn: C) -> None:
        """Wait for a request, or for the rest of its head, then ``advance``."""
        raise NotImplementedError

    def serve(self, conn: C, head: Head | Partial | None) -> None:
        """Serve the request, of which ``head`` is known. (None: it was not read again.)"""
        raise NotImplementedError

    def block(self, conn: C) -> None:
        """Read nothing more, and call ``advance`` or ``retry_blocked`` soon."""
        raise NotImplementedError

    def refuse(self, conn: C, status: int, reason: str, headers: str = "") -> None:
        """Answer in gunicorn's place, and close."""
        raise NotImplementedError

    def drop(self, conn: C) -> None:
        """Close this process's end of the connection."""
        raise NotImplementedError

    def has_room(self) -> bool:
        """Return True if a request can be served here at once."""
        raise NotImplementedError

    def is_behind(self) -> bool:
        """Return True if the event loop lags, so that a request had better go to an idle worker."""
        return False

    # --- connections come -----------------------------------------------------------------------

    def on_accepted(self, conn: C) -> None:
        """Begin with a connection that was accepted."""
        # Where heads cannot be read, its client's address alone decides.
        if not self.head_reader.are_readable:
            owner, me = self.owner_of(unreadable_head(conn.address)), self.place.seat
            if owner is not None and owner.seat != me and self.handoff.send(conn, owner.seat):
                return
        self.start(conn)

    def on_inbox(self) -> None:
        """Receive what other workers have handed over. Called when the inbox is readable."""
        for _ in range(INBOX_BATCH):
            conn = self.handoff.receive()
            if conn is None:
                return
            self.resume_handed(conn)

    def resume_handed(self, conn: C) -> None:
        """Continue with a connection that another worker has handed over."""
        if conn.owned and conn.received and self.membership.serves:
            self.serve(conn, None)
        else:
            self.advance(conn)

    # --- requests -------------------------------------------------------------------------------

    def advance(self, conn: C) -> None:
        """Continue with ``conn`` as far as the bytes that it has received allow."""
        head = self.head_reader.read(conn)
        if head is NEED_MORE:
            self.wait(conn)
            return
        fate = self.route(conn, head) if isinstance(head, Head) else Fate.SERVE
        if fate is Fate.SERVE:
            if self.blocked:
                self.blocked.pop(conn, None)
            self.serve(conn, head)
        elif fate is Fate.SENT:
            self.blocked.pop(conn, None)
        else:
            now = time.monotonic()
            deadline = self.blocked.setdefault(conn, now + self.shared.settings.handoff_timeout)
            if now < deadline or not conn.can_answer():
                self.block(conn)
            else:
                del self.blocked[conn]
                self.refuse(conn, 503, "Service Unavailable", "Retry-After: 1\r\n")

    def retry_blocked(self) -> None:
        """Try again what only one process can serve."""
        for conn in list(self.blocked):
            self.advance(conn)

    def route(self, conn: C, head: Head) -> Fate:
        """Bring the request that ``conn`` has received to the worker that should serve it."""
        if len(conn.received) > MAX_RECEIVED:
            return Fate.SERVE
        owner = self.owner_of(head)
        conn.owned = owner is not None
        seat = self.choose_worker(conn, head) if owner is None else owner.seat
        is_hard = owner is not None and owner.hard_affinity
        # Where hard affinity leads stays the same, however many workers come and go.
        if seat == self.place.seat or (conn.hops >= MAX_HOPS and not is_hard):
            return Fate.SERVE
        if self.handoff.send(conn, seat):
            return Fate.SENT
        board, me = self.shared.board, self.place.seat
        board.set(me, Word.INBOX_FULL, board.get(me, Word.INBOX_FULL) + 1)
        return Fate.BLOCKED if is_hard else Fate.SERVE

    def owner_of(self, head: Head) -> Owner | None:
        """Return the owner of the request; None if any worker may serve it."""
        board = self.shared.board
        owner, rule = find_owner(self.rules, head, board)
        board.words[self.tally[rule]] += 1
        return owner

    def choose_worker(self, conn: C, head: Head) -> int:
        """Return the seat that serves a request without an owner: this one if there is room."""
        me = self.place.seat
        if conn.hops and self.membership.serves:
            # A worker that handed it over found this one the least loaded. What has changed since
            # then is not worth another hand-off.
            return me
        # A session or a WebSocket stays where it begins, so it is worth a hand-off.
        starts_session = self._balances_sessions and starts_engineio_session(head)
        if starts_session or is_websocket_upgrade(head) or not self.has_room():
            seat = least_loaded(self.handoff.loads(), me, strictly=True)
        else:
            seat = me
        if seat == me and self.is_behind():
            loads = self.handoff.loads()
            seat = next((other for other, load in loads.items() if not load.busy), me)
        learned = self._learned_rules
        if seat != me or not learned or not all(rule.may_start_session(head) for rule in learned):
            return seat
        # What is on its way to others costs system calls, so it is looked at only before a move.
        if clearly_less_loaded(self.shared.board.loads(), me) == me:
            return me
        return clearly_less_loaded(self.handoff.loads(), me)

    @cached_property
    def _balances_sessions(self) -> bool:
        return "engineio" in self.shared.settings.sticky

    @cached_property
    def _learned_rules(self) -> list[Learned]:
        return [rule for rule in self.rules if isinstance(rule, Learned)]

    def is_fair_share(self, calls: int) -> bool:
        """Return True unless siblings have much less to do than this worker with ``calls`` at once.

        For a worker with an event loop, which always has room.
        """
        if calls < MIN_FAIR_SHARE:
            return True
        loads = self.shared.board.loads().values()
        least = min((load.busy for load in loads), default=calls)
        return calls <= 2 * least + MIN_FAIR_SHARE
