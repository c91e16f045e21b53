"""What makes a gunicorn worker class a sticky one."""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext import compat, hooks
from gunicorn_cluster_ext.routing.proxy_headers import TrustedProxies
from gunicorn_cluster_ext.routing.responses import Learner
from gunicorn_cluster_ext.routing.rule_syntax import RuleContext, build_rule, learn_rules
from gunicorn_cluster_ext.routing.tags import ProcessTag
from gunicorn_cluster_ext.runtime.board.layout import Word, decision_word
from gunicorn_cluster_ext.workers import engineio
from gunicorn_cluster_ext.workers.handoff import C
from gunicorn_cluster_ext.workers.lifecycle import WorkerLifecycle


class StickyWorker(WorkerLifecycle[C]):
    """Mixed into a gunicorn worker class, before it in the order of bases.

    The class alone brings the whole pack: its constructor, which runs in the arbiter before each
    fork, chains our hooks into the configuration if nothing else has. What a worker class adds are
    the hooks of ``Dispatcher``, for its connections, and of ``WorkerLifecycle``, for its main loop.
    """

    #: So it can be handed connections, and parked.
    reads_inbox = True

    def __init__(
        self, age: int, ppid: int, sockets: Any, app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        """Called in the arbiter."""
        settings = hooks.prepare(cfg, log)
        self.choose_threads(cfg, settings.threads)
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)  # type: ignore[call-arg]

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Warn about settings that cannot work. Called once in the arbiter, at start."""
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
        """Use ``cluster_threads`` where the user has not set gunicorn's ``threads``."""

    @property
    def sets_cookie(self) -> bool:
        """True if responses set our cookie; read by the hook that wraps the application."""
        return "cookie" in self.shared.settings.sticky and compat.can_read_heads(self.cfg)

    @property
    def learner(self) -> Learner | None:
        """The Learner that reads responses for the learn rules; read by the same hook."""
        learned, rules = self.shared.learned, learn_rules(self.shared.settings.sticky)
        if learned is None or not rules or not compat.can_read_heads(self.cfg):
            return None
        return Learner(rules, learned.learn, self._count_session)

    def init_process(self) -> None:
        process = ProcessTag(self.place.slot, self.place.generation)
        if "engineio" in self.shared.settings.sticky:
            engineio.tag_sids(*process, self._count_session)
        if self.shared.learned is not None:
            self.shared.learned.join(process, self.place.seat)
        super().init_process()  # type: ignore[misc]

    def load_wsgi(self) -> None:
        super().load_wsgi()  # type: ignore[misc]
        self.load_rules()  # now: a rule that cannot be built fails the boot

    def load_rules(self) -> None:
        """Build the sticky rules that can work here. A rule may be in the loaded application."""
        settings, cfg = self.shared.settings, self.cfg
        trust = TrustedProxies(cfg.forwarded_allow_networks(), "*" in cfg.forwarded_allow_ips)
        context = RuleContext(settings.cookie, trust.client_ip, self._recall, self._rule_failed)
        reads_heads = compat.can_read_heads(cfg)
        rules = [rule for rule in settings.sticky if reads_heads or rule == "hash:ip"]
        self.rules = [build_rule(rule, context) for rule in rules]
        row = self.shared.board.row_start(self.place.seat)
        self.tally = [row + decision_word(rule) for rule in (*rules, "none")]

    def _recall(self, rule: str, value: bytes) -> ProcessTag | None:
        learned = self.shared.learned
        return None if learned is None else learned.recall(rule, value)

    def _rule_failed(self, rule: str, error: Exception) -> None:
        self.log.error("cluster_sticky: %s failed, so it finds no owner: %r", rule, error)

    def notify(self) -> None:
        """Called in each turn of the worker's main loop, or once a second."""
        super().notify()
        self.shared.board.beat(self.place.seat)

    def _count_session(self) -> None:
        # Several threads may add at once and lose one: it only breaks ties between workers.
        board, seat = self.shared.board, self.place.seat
        board.set(seat, Word.SESSIONS, board.get(seat, Word.SESSIONS) + 1)
