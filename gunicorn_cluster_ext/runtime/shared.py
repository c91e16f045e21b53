"""The objects that the arbiter makes before its first fork and all workers share."""

from __future__ import annotations

from gunicorn_cluster_ext.routing.rule_syntax import learn_rules
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT
from gunicorn_cluster_ext.runtime.inboxes import Inboxes
from gunicorn_cluster_ext.runtime.learned import LearnedSessions
from gunicorn_cluster_ext.settings import Settings


class Shared:
    """The board, inboxes, learned sessions and private directory of one server.

    ``directory`` is None where the board is anonymous. Raise OSError if an inbox cannot be made.
    """

    #: None until there is a learn rule. A worker keeps what there was when it was forked.
    learned: LearnedSessions | None = None

    def __init__(self, settings: Settings, board: Board) -> None:
        self.settings, self.board, self.capacity = settings, board, board.capacity
        self.directory = None if board.path is None else board.path.parent
        self.inboxes = Inboxes(board.capacity * SEATS_PER_SLOT)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Use other settings from now on. What exists already keeps its size until a restart."""
        self.settings = settings
        if self.learned is not None:
            self.learned.ttl = settings.learn_ttl
        elif learn_rules(settings.sticky):
            self.learned = LearnedSessions(settings.learn_size, settings.learn_ttl)
