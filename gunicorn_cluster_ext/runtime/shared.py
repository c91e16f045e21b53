"""What the arbiter makes before its first fork, and all workers use."""

from __future__ import annotations

from pathlib import Path

from gunicorn_cluster_ext.routing.rule_syntax import learn_rules
from gunicorn_cluster_ext.runtime.board.board import Board
from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT
from gunicorn_cluster_ext.runtime.inboxes import Inboxes
from gunicorn_cluster_ext.runtime.learned import LearnedSessions
from gunicorn_cluster_ext.settings import Settings


class Shared:
    """Board, inboxes, learned sessions and private directory of one server.

    ``capacity`` counts slots. ``directory`` is None where none can be made: then the board is
    anonymous. Raises OSError when the board or an inbox cannot be made.
    """

    #: What the learn rules remember, once there is one. A worker has what was there at its fork.
    learned: LearnedSessions | None = None

    def __init__(self, settings: Settings, capacity: int, directory: Path | None) -> None:
        self.settings, self.capacity, self.directory = settings, capacity, directory
        self.board = Board.create(capacity, directory / "board" if directory else None)
        self.inboxes = Inboxes(capacity * SEATS_PER_SLOT)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Use other settings from now on. What exists already keeps its size until a restart."""
        self.settings = settings
        if self.learned is not None:
            self.learned.ttl = settings.learn_ttl
        elif learn_rules(settings.sticky):
            self.learned = LearnedSessions(settings.learn_size, settings.learn_ttl)
