"""Which process holds which slot, and in what role. No I/O; used in the arbiter only.

    CURRENT   has the slot: it boots, or serves
    NEXT      boots to take over from CURRENT (or comes back from PARKED to do so)
    PARKED    was replaced by a roll that may still fail; it is kept, and serves nobody new
    LEAVING   was told to finish

A slot has two *seats*, so two processes at most. The rules:

* a new process takes the seat that the slot's last CURRENT had, if that is free: what was
  queued in the inbox of a killed process is then read by its replacement;
* when CURRENT is gone or leaves, NEXT is CURRENT;
* the generation counts the processes that have held the slot.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from gunicorn_cluster_ext.runtime.board.layout import SEATS_PER_SLOT, Place, State


class Role(enum.Enum):
    CURRENT = enum.auto()
    NEXT = enum.auto()
    PARKED = enum.auto()
    LEAVING = enum.auto()


@dataclass(eq=False)
class Process:
    """A worker process, from its fork until it is reaped, as the arbiter knows it.

    ``key`` is chosen by the caller (gunicorn's worker age). ``version`` counts the
    configurations: processes of one roll have the same. Times are monotonic, in seconds.
    """

    key: int
    place: Place
    version: int
    forked: float
    role: Role
    state: State = State.BOOTING
    can_park: bool = False
    ready: float | None = None  # since when it serves
    healthy: bool = False  # it has passed a health check
    due: str = ""  # why it is to be replaced,
    due_since: float = 0.0
    told: float | None = None  # when it was told to finish,
    why: str = ""  # and why
    told_early: bool = False  # it booted then, and may not have heard it
    blamed: str = ""  # what it did, if the arbiter ends it by force
    killed: bool = False
    oversized: int = 0  # samples in a row of more memory than it may have
    expires: float | None = None  # when its lifetime ends

    @property
    def serves(self) -> bool:
        """Whether it can be relied upon: one that is ended by force may still say READY."""
        in_service = self.told is None and self.role in (Role.CURRENT, Role.NEXT)
        return in_service and self.state is State.READY

    def __repr__(self) -> str:
        slot, _, generation = self.place
        return f"<{self.role.name} {slot}.{generation} {self.state.name.lower()}>"


@dataclass
class _Slot:
    generation: int = 0
    last_seat: int = 0
    seats: dict[int, Process] = field(default_factory=dict)  # by seat, 0 or 1

    def free_seat(self) -> int | None:
        for seat in (self.last_seat, 1 - self.last_seat):
            if seat not in self.seats:
                return seat
        return None

    def one(self, role: Role) -> Process | None:
        return next((each for each in self.seats.values() if each.role is role), None)


class SlotTable:
    """Every process of a server."""

    def __init__(self, capacity: int) -> None:
        self._slots = [_Slot() for _ in range(capacity)]
        self._processes: dict[int, Process] = {}

    def __repr__(self) -> str:
        return f"<SlotTable {list(self)}>"

    def __iter__(self) -> Iterator[Process]:
        """Every process, in slot order."""
        return (each for slot in self._slots for each in slot.seats.values())

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def get(self, key: int) -> Process | None:
        return self._processes.get(key)

    def current(self, slot: int) -> Process | None:
        return self._slots[slot].one(Role.CURRENT)

    def next(self, slot: int) -> Process | None:
        return self._slots[slot].one(Role.NEXT)

    def has_seat(self, slot: int) -> bool:
        return self._slots[slot].free_seat() is not None

    def count(self, *roles: Role) -> int:
        return sum(each.role in roles for each in self)

    def serving(self) -> int:
        """In how many slots a process serves."""
        return len({each.place.slot for each in self if each.serves})

    def seat(self, key: int, slot: int, version: int, now: float) -> Process:
        """Give the process ``key``, about to be forked, a seat in ``slot``.

        Raises LookupError when that has none, or somebody sits there to take over already.
        """
        there = self._slots[slot]
        seat = there.free_seat()
        if seat is None or there.one(Role.NEXT):
            raise LookupError(f"no seat is free in slot {slot}: {list(there.seats.values())}")
        there.generation += 1
        place = Place(slot, slot * SEATS_PER_SLOT + seat, there.generation)
        role = Role.NEXT if there.one(Role.CURRENT) else Role.CURRENT
        process = Process(key, place, version, now, role)
        there.seats[seat] = self._processes[key] = process
        return process

    def saw(self, process: Process, state: State, now: float) -> None:
        """``process`` says that its state is ``state``."""
        process.state = state
        # A turn may have missed that it was ready.
        if state in (State.READY, State.DRAINING, State.PARKED) and process.ready is None:
            process.ready = now

    def change(self, process: Process, role: Role) -> None:
        """Give ``process`` another role. A slot that loses its CURRENT so has NEXT instead."""
        slot = self._slots[process.place.slot]
        if process.role is Role.CURRENT:
            slot.last_seat = process.place.seat % SEATS_PER_SLOT
        process.role = role
        self._promote(slot)

    def leave(self, key: int) -> Process | None:
        """The process is gone. Returns what was known of it."""
        process = self._processes.pop(key, None)
        if process is not None:
            self.change(process, Role.LEAVING)
            slot = self._slots[process.place.slot]
            del slot.seats[process.place.seat % SEATS_PER_SLOT]
        return process

    def _promote(self, slot: _Slot) -> None:
        successor = slot.one(Role.NEXT)
        if successor is not None and slot.one(Role.CURRENT) is None:
            successor.role = Role.CURRENT
