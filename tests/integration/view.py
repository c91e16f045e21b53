"""What the workers of a server publish, read from its board as other processes read it."""

from pathlib import Path

import psutil

from gunicorn_cluster_ext.board import Board, Row, State, directories
from tests.harness.gunicorn import Gunicorn
from tests.harness.waiting import wait_until

PATIENCE_S = 45

STICKY = "gunicorn_cluster_ext.Sticky"


class View:
    """The board of a running server. Its directory is where the harness wants it.

    `master` is the server's pid where that is not the process that was started (USR2).
    """

    def __init__(self, server: Gunicorn, master: int | None = None) -> None:
        self._server = server
        self._master = master or server.master_pid
        server.wait_for(self._directories, PATIENCE_S, "a directory with a board")
        self._board = wait_until(self._attach, PATIENCE_S, "a board")

    def _directories(self) -> list[Path]:
        base = str(self._server.directory)
        return [path for pid, path in directories(base) if pid == self._master]

    def _attach(self) -> Board | None:
        for path in self._directories():
            try:
                board = Board.attach(path / "board")
            except (OSError, ValueError):  # it is being written
                continue
            assert board.master_pid == self._master
            return board
        return None

    @property
    def rows(self) -> list[Row]:
        return list(self._board.rows())

    @property
    def capacity(self) -> int:
        return self._board.capacity

    @property
    def target(self) -> int:
        return self._board.target

    def total(self, word: str) -> int:
        """The sum of a word, such as "handed_in", over all workers."""
        return sum(row.words[word] for row in self.rows)

    def slots(self) -> dict[int, Row]:
        """The workers that serve, by slot."""
        return {row.slot: row for row in self.rows if row.state is State.READY}

    def pids(self) -> dict[int, int]:
        return {slot: row.words["pid"] for slot, row in self.slots().items()}

    def generations(self) -> dict[int, int]:
        return {slot: row.words["generation"] for slot, row in self.slots().items()}

    def wait_slots(self, count: int, generation: int | None = None) -> dict[int, int]:
        """Wait until the slots 0 to count-1 serve and nobody else is there; the pids by slot."""

        def complete() -> bool:
            pids = self.pids()
            return (
                len(self.rows) == count
                and sorted(pids) == list(range(count))
                and sorted(pids.values()) == self._children()
                and (generation is None or set(self.generations().values()) == {generation})
            )

        what = f"the slots 0 to {count - 1}"
        if generation is not None:
            what += f" in generation {generation}"
        try:
            self._server.wait_for(complete, PATIENCE_S, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None
        return self.pids()

    def _children(self) -> list[int]:
        try:
            children = psutil.Process(self._master).children()
            return sorted(c.pid for c in children if c.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:  # one ended while it was asked for its state
            return []

    def wait_total(self, word: str, least: int) -> int:
        wait_until(lambda: self.total(word) >= least, PATIENCE_S, f"{least} {word}")
        return self.total(word)

    def describe(self) -> str:
        return "\n".join(
            f"slot {row.slot} seat {row.seat} {row.state!r} {row}" for row in self.rows
        )
