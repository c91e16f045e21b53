"""Which process holds which slot. No I/O; used in the arbiter only.

A process *holds* its slot from its fork until it *retires* (it was told to finish, or its
successor was forked), and keeps its seat until it is reaped. The rules:

* a new process gets the lowest slot that nobody holds and that has a free seat, below the
  number of workers wanted: so the slots are 0 to n-1, and the replacement of a dead worker
  gets its slot;
* it takes the seat that was used last, if that is free: what was queued in the inbox of a
  killed process is then read by its replacement;
* the generation counts the processes that have held the slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gunicorn_cluster_ext.board import SEATS_PER_SLOT


class Place(NamedTuple):
    """Where a process sits: its slot, its seat on the board, its generation."""

    slot: int
    seat: int
    generation: int


@dataclass
class _Slot:
    generation: int = 0
    last_seat: int = 0
    seats: dict[int, int] = field(default_factory=dict)  # seat (0 or 1) -> process
    holder: int | None = None
    outdated: bool = False  # the holder is to be succeeded when there is a seat

    def free_seat(self) -> int | None:
        for seat in (self.last_seat, 1 - self.last_seat):
            if seat not in self.seats:
                return seat
        return None

    def give_way(self) -> None:
        if self.outdated and self.free_seat() is not None:
            self.holder, self.outdated = None, False


class SlotTable:
    """Every process of a server, by a number that the caller chooses (gunicorn's worker age)."""

    def __init__(self, capacity: int) -> None:
        self._slots = [_Slot() for _ in range(capacity)]
        self._places: dict[int, Place] = {}

    def __repr__(self) -> str:
        return f"<SlotTable {[slot.holder for slot in self._slots if slot.seats]}>"

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def free(self, below: int) -> int | None:
        """The lowest slot below ``below`` that a new process can have, if there is one."""
        for number, slot in enumerate(self._slots[:below]):
            if slot.holder is None and slot.free_seat() is not None:
                return number
        return None

    def seat(self, process: int, below: int) -> Place:
        """Give ``process`` the slot that is ``free``. Raises LookupError when none is."""
        number = self.free(below)
        if number is None:
            raise LookupError(f"no slot below {below} is free")
        slot = self._slots[number]
        seat = slot.free_seat()
        assert seat is not None
        slot.generation += 1
        slot.holder, slot.last_seat = process, seat
        slot.seats[seat] = process
        place = Place(number, number * SEATS_PER_SLOT + seat, slot.generation)
        self._places[process] = place
        return place

    def place(self, process: int) -> Place | None:
        """Where ``process`` sits, or None if it is unknown."""
        return self._places.get(process)

    def retire(self, process: int) -> None:
        """``process`` was told to finish: its slot is free for another, its seat is not."""
        place = self._places.get(process)
        if place is not None and self._slots[place.slot].holder == process:
            self._slots[place.slot].holder = None

    def retire_all(self) -> None:
        """Every process is to be succeeded by a new one, as soon as there is a seat for that."""
        for slot in self._slots:
            slot.outdated = True
            slot.give_way()

    def crowding(self) -> list[int]:
        """The processes that finish in slots where no seat is left for a successor."""
        crowded = [slot for slot in self._slots if slot.free_seat() is None]
        return [each for slot in crowded for each in slot.seats.values() if each != slot.holder]

    def leave(self, process: int) -> Place | None:
        """``process`` is gone. Returns where it sat."""
        place = self._places.get(process)
        if place is not None:
            self.retire(process)
            del self._places[process]
            slot = self._slots[place.slot]
            del slot.seats[place.seat % SEATS_PER_SLOT]
            slot.give_way()
        return place

    def holders(self) -> Iterator[int]:
        """The processes that hold slots, in slot order."""
        return (slot.holder for slot in self._slots if slot.holder is not None)

    def is_holder(self, process: int) -> bool:
        place = self._places.get(process)
        return place is not None and self._slots[place.slot].holder == process
