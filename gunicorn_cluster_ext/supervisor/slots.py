"""Which process holds which slot, and in what role. No I/O; used in the arbiter only.

    CURRENT   has the slot: it is booting or serving
    NEXT      is to take over from CURRENT: it is booting, or being resumed after PARKED
    PARKED    was replaced by a roll that may still fail; it is kept and takes no new requests
    RETIRED   was asked to finish

A slot has two *seats*, so two processes at most. The rules:

* a new process takes the seat that the slot's last CURRENT had, if that seat is free: what is
  still queued in the inbox of a killed process is then read by its replacement;
* when CURRENT exits or loses its role, NEXT becomes CURRENT;
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
    RETIRED = enum.auto()


@dataclass(eq=False)
class Process:
    """What the arbiter knows of a worker process, from its fork until it is reaped.

    ``key`` is chosen by the caller (gunicorn's worker age). ``version`` counts the rolls: the
    processes that one roll has started have its version. Times are monotonic, in seconds.
    """

    key: int
    place: Place
    version: int
    forked_at: float
    role: Role
    state: State = State.BOOTING
    can_park: bool = False
    ready_at: float | None = None
    healthy: bool = False  # it has passed a health check
    replace_reason: str = ""  # set while the process is due to be replaced
    due_since: float = 0.0
    retired_at: float | None = None  # when it was asked, or forced, to finish
    retire_reason: str = ""
    retired_while_booting: bool = False  # so it may not have had its signal handlers yet
    kill_reason: str = ""  # set when the arbiter ends it by force
    killed: bool = False
    oversized: int = 0  # samples in a row above cluster_max_memory
    expires_at: float | None = None  # when its lifetime ends

    @property
    def serves(self) -> bool:
        """Return whether the process can be relied upon to serve.

        A process that is being ended by force may still publish READY.
        """
        in_service = self.retired_at is None and self.role in (Role.CURRENT, Role.NEXT)
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

    def holder(self, role: Role) -> Process | None:
        return next((each for each in self.seats.values() if each.role is role), None)


class SlotTable:
    """Every process of a server."""

    def __init__(self, capacity: int) -> None:
        self._slots = [_Slot() for _ in range(capacity)]
        self._processes: dict[int, Process] = {}

    def __repr__(self) -> str:
        return f"<SlotTable {list(self)}>"

    def __iter__(self) -> Iterator[Process]:
        """Iterate over the processes, in slot order."""
        return (each for slot in self._slots for each in slot.seats.values())

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def get(self, key: int) -> Process | None:
        return self._processes.get(key)

    def current(self, slot: int) -> Process | None:
        return self._slots[slot].holder(Role.CURRENT)

    def next(self, slot: int) -> Process | None:
        return self._slots[slot].holder(Role.NEXT)

    def has_free_seat(self, slot: int) -> bool:
        return self._slots[slot].free_seat() is not None

    def count(self, *roles: Role) -> int:
        return sum(each.role in roles for each in self)

    def serving(self) -> int:
        """Return the number of slots in which a process serves."""
        return len({each.place.slot for each in self if each.serves})

    def add(self, key: int, slot: int, version: int, now: float) -> Process:
        """Give the process ``key``, about to be forked, a seat in ``slot``.

        Raises LookupError when ``slot`` has no free seat, or has a NEXT process already.
        """
        there = self._slots[slot]
        seat = there.free_seat()
        if seat is None or there.holder(Role.NEXT):
            raise LookupError(f"no seat is free in slot {slot}: {list(there.seats.values())}")
        there.generation += 1
        place = Place(slot, slot * SEATS_PER_SLOT + seat, there.generation)
        role = Role.NEXT if there.holder(Role.CURRENT) else Role.CURRENT
        process = Process(key, place, version, now, role)
        there.seats[seat] = self._processes[key] = process
        return process

    def note_state(self, process: Process, state: State, now: float) -> None:
        """Record the state that ``process`` has published."""
        process.state = state
        # The arbiter looks once per turn, so it may have missed READY.
        if state in (State.READY, State.DRAINING, State.PARKED) and process.ready_at is None:
            process.ready_at = now

    def set_role(self, process: Process, role: Role) -> None:
        """Give ``process`` another role. If its slot thereby has no CURRENT, NEXT becomes it."""
        slot = self._slots[process.place.slot]
        if process.role is Role.CURRENT:
            slot.last_seat = process.place.seat % SEATS_PER_SLOT
        process.role = role
        successor = slot.holder(Role.NEXT)
        if successor is not None and slot.holder(Role.CURRENT) is None:
            successor.role = Role.CURRENT

    def remove(self, key: int) -> Process | None:
        """Remove a process that has exited. Return what was known of it, or None."""
        process = self._processes.pop(key, None)
        if process is not None:
            self.set_role(process, Role.RETIRED)
            slot = self._slots[process.place.slot]
            del slot.seats[process.place.seat % SEATS_PER_SLOT]
        return process
