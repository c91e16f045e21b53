"""What the workers of a server publish, read from its board as other processes read it."""

from collections import Counter
from pathlib import Path

import pytest

from gunicorn_cluster_ext.routing.balance import Load
from gunicorn_cluster_ext.runtime.board import ledger
from gunicorn_cluster_ext.runtime.board.board import Board, Row
from gunicorn_cluster_ext.runtime.board.layout import Roll, RollState, ServerWord, State
from gunicorn_cluster_ext.runtime.directory import directories
from tests.harness.processes import children
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.waiting import wait_until
from tests.harness.watcher import Watcher

PATIENCE_S = 45

STICKY = "gunicorn_cluster_ext.Sticky"
GEVENT = "gunicorn_cluster_ext.StickyGevent"
ASGI = "gunicorn_cluster_ext.StickyASGI"
#: Every worker class of the pack.
KINDS = (STICKY, GEVENT, ASGI)


def name_of(kind: str) -> str:
    return kind.rpartition(".")[2]


#: Runs a test, or a module's, on each of them. Others run on Sticky alone (see the fixture kind).
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=name_of)


class View:
    """The board of a running server, which the harness has put into the server's directory.

    `master` is the server's pid where that is not the process that was started (USR2).
    """

    def __init__(
        self, server: Gunicorn, master: int | None = None, cluster_dir: str | None = None
    ) -> None:
        self._server = server
        self._base = cluster_dir or str(server.directory)
        self._master = master or server.master_pid
        server.wait_for(self._directories, PATIENCE_S, "a directory with a board")
        self._board = wait_until(self._attach, PATIENCE_S, "a board")

    def _directories(self) -> list[Path]:
        return [path for pid, path in directories(self._base) if pid == self._master]

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
    def path(self) -> Path:
        """The board's file."""
        assert self._board.path is not None
        return self._board.path

    @property
    def rows(self) -> list[Row]:
        return list(self._board.rows())

    @property
    def capacity(self) -> int:
        return self._board.capacity

    @property
    def target(self) -> int:
        return self._board.target

    @property
    def roll(self) -> Roll:
        return self._board.roll

    @property
    def replies(self) -> int:
        """The number of the last control request that was answered."""
        return self._board.words[ServerWord.REPLY_NUMBER]

    @property
    def faults(self) -> int:
        """How many failures in the arbiter were contained."""
        return self._board.faults

    @property
    def slowest_turn(self) -> float:
        """The longest turn of the arbiter's loop so far, in seconds, without its forks."""
        return self._board.slowest_turn / 1e9

    def loads(self) -> dict[int, Load]:
        """Return the load of each worker as the others see it, by seat."""
        return self._board.loads()

    def total(self, word: str) -> int:
        """Return the sum of a word, such as "handed_in", over all workers."""
        return sum(row.words[word] for row in self.rows)

    def counted(self, word: int) -> int:
        """Return what all processes have counted since the server's start."""
        return sum(counted[word] for counted in ledger.totals(self._board))

    def slots(self) -> dict[int, Row]:
        """Return the rows of the workers that serve, by slot."""
        return {row.slot: row for row in self.rows if row.state is State.READY}

    def pids(self) -> dict[int, int]:
        return {slot: row.words["pid"] for slot, row in self.slots().items()}

    def generations(self) -> dict[int, int]:
        return {slot: row.words["generation"] for slot, row in self.slots().items()}

    def wait_slots(self, count: int, generation: int | None = None) -> dict[int, int]:
        """Wait until exactly the slots 0 to count-1 serve; return the pids by slot."""

        def complete() -> bool:
            pids = self.pids()
            return (
                len(self.rows) == count
                and sorted(pids) == list(range(count))
                and sorted(pids.values()) == children(self._master)
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

    def wait_roll(self, number: int, state: RollState = RollState.COMMITTED) -> Roll:
        """Wait until the roll with that number is in that state."""

        def there() -> bool:
            return self.roll[:2] == (state, number)

        try:
            self._server.wait_for(there, PATIENCE_S, f"roll {number} {state.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.roll}\n{self.describe()}") from None
        return self.roll

    def wait_generation(self, slot: int, generation: int) -> int:
        """Wait until at least that generation serves the slot; return its pid."""

        def there() -> bool:
            return self.generations().get(slot, 0) >= generation

        self._server.wait_for(there, PATIENCE_S, f"generation {generation} of slot {slot}")
        return self.pids()[slot]

    def wait_total(self, word: str, least: int) -> int:
        wait_until(lambda: self.total(word) >= least, PATIENCE_S, f"{least} {word}")
        return self.total(word)

    def describe(self) -> str:
        return "\n".join(
            f"slot {row.slot} seat {row.seat} {row.state!r} {row}" for row in self.rows
        )


class Watch(Watcher):
    """Samples the board all the time, in a thread, and keeps the extremes that it saw."""

    interval = 0.005

    def __init__(self, view: View) -> None:
        self._view = view
        self.looks = 0
        self.fewest_serving = 1_000
        #: Processes that boot, and slots that serve: a slot's old and new process count as one.
        self.most_active = 0
        self.most_booting = 0
        self.most_parked = 0
        #: With those that drain.
        self.most_processes = 0

    def look(self) -> None:
        self._note(self._steady())

    def _steady(self) -> list[tuple[int, State]]:
        """Return what was read twice: a slot may change seats between two reads."""
        last = None
        while True:
            seen = [(row.slot, row.state) for row in self._view.rows]
            if seen == last:
                return seen
            last = seen

    def _note(self, seen: list[tuple[int, State]]) -> None:
        states = Counter(state for _, state in seen)
        serving = len({slot for slot, state in seen if state is State.READY})
        self.looks += 1
        self.fewest_serving = min(self.fewest_serving, serving)
        self.most_active = max(self.most_active, states[State.BOOTING] + serving)
        self.most_booting = max(self.most_booting, states[State.BOOTING])
        self.most_parked = max(self.most_parked, states[State.PARKED])
        self.most_processes = max(self.most_processes, len(seen))
