"""What all sticky workers share: how they come to their cluster, and whose a request is."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from gunicorn_cluster_ext import compat, hooks
from gunicorn_cluster_ext.routing.balance import clearly_less_loaded, least_loaded
from gunicorn_cluster_ext.routing.head import Head, unreadable_head
from gunicorn_cluster_ext.routing.proxy_headers import TrustedProxies
from gunicorn_cluster_ext.routing.responses import Learner
from gunicorn_cluster_ext.routing.rule_syntax import RuleContext, build_rule, learn_rules
from gunicorn_cluster_ext.routing.rules import (
    Learned,
    Owner,
    Rule,
    find_owner,
    is_websocket_upgrade,
    starts_engineio_session,
)
from gunicorn_cluster_ext.routing.tags import ProcessTag
from gunicorn_cluster_ext.runtime.board.layout import Place, Word, decision_word
from gunicorn_cluster_ext.runtime.inboxes import MAX_RECEIVED
from gunicorn_cluster_ext.runtime.shared import Shared
from gunicorn_cluster_ext.workers import engineio
from gunicorn_cluster_ext.workers.connection import Arrival
from gunicorn_cluster_ext.workers.handoff import Post
from gunicorn_cluster_ext.workers.head_reader import Heads
from gunicorn_cluster_ext.workers.membership import Member

#: After so many hand-offs without being served a request is served where it is: workers that
#: come and go must not play ball with it.
MAX_HOPS: Final = 2
#: Hand-offs that are read at once, so that none starves the other connections.
INBOX_BATCH: Final = 32
#: How often a request is tried again that only one process can serve, whose inbox is full.
RETRY_INTERVAL: Final = 0.01
#: How long the first workers wait for each other: a hung import must not stop its siblings.
START_TIMEOUT: Final = 5.0
START_INTERVAL: Final = 0.01
#: How often a worker that drains or is parked looks whether there is something to hand on.
DRAIN_INTERVAL: Final = 0.02
#: So many requests may be in progress before a worker looks whether siblings have fewer. An
#: event loop serves many at once, but what they do when they go on it does one after the other.
FEW: Final = 8


class Way(enum.Enum):
    """What becomes of a request."""

    HERE = 1  # it is to be served here
    SENT = 2  # another worker has the connection
    WAIT = 3  # only one process can serve it, and its inbox is full


class StickyWorker:
    """Mixed into a gunicorn worker class, before it in the order of bases.

    That class alone brings the whole pack: its constructor, which runs in the arbiter before
    each fork, chains our hooks into the configuration if nothing else has.
    """

    #: So it can be handed connections, and parked.
    reads_inbox = True

    #: Whether the worker was told to finish. Unlike gunicorn's ``alive``, which it sets to False,
    #: this closes no connection: that depends on whether somebody can take it over.
    leaving = False

    #: The arbiter sets these two in ``pre_fork``.
    shared: Shared
    place: Place

    #: What a worker class makes when its application is loaded.
    member: Member
    heads: Heads
    post: Post[Any]

    rules: Sequence[Rule]
    cfg: Any
    log: Any

    def __init__(
        self, age: int, ppid: int, sockets: Any, app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        """Called in the arbiter."""
        settings = hooks.prepare(cfg, log)
        self.choose_threads(cfg, settings.threads)
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)  # type: ignore[call-arg]

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called once in the arbiter, at start: say at once what cannot work."""
        settings = hooks.prepare(cfg, log)
        threads = cfg.threads
        cls.choose_threads(cfg, settings.threads)
        if cfg.threads != threads:
            log.info("Using up to %d threads per worker (cluster_threads)", cfg.threads)
        inherited = getattr(super(), "check_config", None)
        if inherited is not None:  # gthread has one
            inherited(cfg, log)
        lost = [rule for rule in settings.sticky if rule != "hash:ip"]
        if lost and not compat.can_read_heads(cfg):
            log.warning(
                "cluster_sticky: %s cannot work with TLS, HTTP/2 or the uwsgi protocol in "
                "gunicorn, where the head of a request cannot be read to route it; hash:ip can. "
                "Terminate TLS in front of gunicorn to use them.",
                ", ".join(lost),
            )

    @staticmethod
    def choose_threads(cfg: Any, threads: int) -> None:
        """Take ``cluster_threads`` where the user has not set gunicorn's ``threads``."""

    @property
    def sets_cookie(self) -> bool:
        """Whether responses set our cookie; read by the hook that wraps the application."""
        return "cookie" in self.shared.settings.sticky and compat.can_read_heads(self.cfg)

    @property
    def learner(self) -> Learner | None:
        """What hears the responses for the learn rules; read by the same hook."""
        memory, rules = self.shared.learned, learn_rules(self.shared.settings.sticky)
        if memory is None or not rules or not compat.can_read_heads(self.cfg):
            return None
        return Learner(rules, memory.learn, self._session_begins)

    def init_process(self) -> None:
        process = ProcessTag(self.place.slot, self.place.generation)
        if "engineio" in self.shared.settings.sticky:
            engineio.tag_sids(*process, self._session_begins)
        if self.shared.learned is not None:
            self.shared.learned.join(process, self.place.seat)
        super().init_process()  # type: ignore[misc]

    def load_wsgi(self) -> None:
        super().load_wsgi()  # type: ignore[misc]
        self.rules = self._build_rules()  # now: what cannot be built fails the boot

    def notify(self) -> None:
        """Called in each turn of the worker's loop, or once a second."""
        super().notify()  # type: ignore[misc]
        self.shared.board.beat(self.place.seat)

    def _session_begins(self) -> None:
        # Several threads may add at once and lose one: it only breaks ties between workers.
        board, seat = self.shared.board, self.place.seat
        board.set(seat, Word.SESSIONS, board.get(seat, Word.SESSIONS) + 1)

    # --- whose is it? -------------------------------------------------------------------

    def _build_rules(self) -> Sequence[Rule]:
        """The sticky rules; after the application is loaded, for a rule may be in it."""
        cookie = self.shared.settings.cookie
        trust = TrustedProxies(
            self.cfg.forwarded_allow_networks(), "*" in self.cfg.forwarded_allow_ips
        )
        means = RuleContext(cookie, trust.client_ip, self._recall, self._rule_failed)
        return [build_rule(rule, means) for rule in self._rule_words]

    @property
    def _rule_words(self) -> list[str]:
        """The rules that can work here, as they are set."""
        rules = self.shared.settings.sticky
        reads_heads = compat.can_read_heads(self.cfg)
        return [rule for rule in rules if reads_heads or rule == "hash:ip"]

    @cached_property
    def _tally(self) -> list[int]:
        """The words of the board that count decisions: one for each rule, the last for none."""
        row = self.shared.board.row_start(self.place.seat)
        return [row + decision_word(words) for words in (*self._rule_words, "none")]

    def _recall(self, words: str, value: bytes) -> ProcessTag | None:
        memory = self.shared.learned
        return None if memory is None else memory.recall(words, value)

    def _rule_failed(self, words: str, error: Exception) -> None:
        self.log.error("cluster_sticky: %s failed, so it finds no owner: %r", words, error)

    def owner_of(self, head: Head) -> Owner | None:
        """Who owns the request; None when it is anybody's."""
        board = self.shared.board
        owner, rule = find_owner(self.rules, head, board)
        board.words[self._tally[rule]] += 1
        return owner

    def taker_of(self, head: Head) -> int:
        """The seat that takes a request of nobody: this one, if there is room."""
        if not self.opens_session(head) and self.has_room():
            return self.place.seat
        return least_loaded(self.post.loads(), self.place.seat, strictly=True)

    def _choose(self, head: Head) -> int:
        """The seat for a request of nobody, which may begin a learned session there."""
        seat, learned = self.taker_of(head), self._learned
        if seat != self.place.seat or not learned:
            return seat
        if not all(rule.may_start_session(head) for rule in learned):
            return seat
        # What is on its way to others costs system calls: they are asked only before it moves.
        if clearly_less_loaded(self.shared.board.loads(), seat) == seat:
            return seat
        return clearly_less_loaded(self.post.loads(), seat)

    @cached_property
    def _learned(self) -> list[Learned]:
        return [rule for rule in self.rules if isinstance(rule, Learned)]

    def opens_session(self, head: Head) -> bool:
        """Whether the request chooses its worker for long, so that it is worth a hand-off."""
        if self._balances_sessions and starts_engineio_session(head):
            return True
        return is_websocket_upgrade(head)

    @cached_property
    def _balances_sessions(self) -> bool:
        return "engineio" in self.shared.settings.sticky

    def has_room(self) -> bool:
        """Whether a request can be served here at once."""
        raise NotImplementedError

    def has_its_share(self, calls: int) -> bool:
        """Whether siblings have not much less to do than a worker that does ``calls`` at once.

        For one with an event loop, which always has room.
        """
        if calls < FEW:
            return True
        least = min(load.busy for load in self.shared.board.loads().values())
        return calls <= 2 * least + FEW

    def route(self, conn: Arrival, head: Head) -> Way:
        """Bring the request that ``conn`` has received to who should serve it."""
        if len(conn.received) > MAX_RECEIVED:
            return Way.HERE
        owner = self.owner_of(head)
        conn.owned = owner is not None
        seat = self._taker_of(conn, head) if owner is None else owner.seat
        is_hard = owner is not None and owner.hard_affinity
        # Where hard affinity leads stays the same, however many workers come and go.
        if seat == self.place.seat or (conn.hops >= MAX_HOPS and not is_hard):
            return Way.HERE
        if self.post.hand_over(conn, seat):
            return Way.SENT
        board, me = self.shared.board, self.place.seat
        board.set(me, Word.INBOX_FULL, board.get(me, Word.INBOX_FULL) + 1)
        return Way.WAIT if is_hard else Way.HERE

    def _taker_of(self, conn: Arrival, head: Head) -> int:
        """Return the seat that serves a request without an owner.

        A worker that handed it over found this one the least loaded. What has changed since
        then is not worth another hand-off.
        """
        is_chosen = conn.hops > 0 and self.member.serves
        return self.place.seat if is_chosen else self._choose(head)

    def route_blindly(self, conn: Arrival) -> Way:
        """The same for a connection whose heads cannot be read: by its address alone."""
        owner = self.owner_of(unreadable_head(conn.address))
        if owner is None or owner.seat == self.place.seat:
            return Way.HERE
        return Way.SENT if self.post.hand_over(conn, owner.seat) else Way.HERE
