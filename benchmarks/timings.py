"""Times per call, and ratios; contenders take turns, so that other load affects them alike."""

from __future__ import annotations

import operator
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from statistics import median
from typing import Any

#: A contender and an operation.
Cell = tuple[str, str]

# Calls between two readings of the clock.
CHUNK = 20


def microseconds(call: Callable[[Any], object], arguments: Sequence[Any], seconds: float) -> float:
    """Return the time per call, with the arguments in turn, repeated for about ``seconds``."""
    chunks = cycle([arguments[n : n + CHUNK] for n in range(0, len(arguments), CHUNK)])
    calls = 0
    begun = now = time.perf_counter()
    while now < begun + seconds:
        chunk = next(chunks)
        for argument in chunk:
            call(argument)
        calls += len(chunk)
        now = time.perf_counter()
    return (now - begun) / calls * 1e6


@dataclass
class Timings:
    """Samples in microseconds, one per cell and round, or the reason why there are none."""

    samples: dict[Cell, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, cell: Cell, sample: float | str | None) -> None:
        if isinstance(sample, str):
            self.failures[cell[0]] = sample
        elif sample is not None:
            self.samples[cell].append(sample)

    def median(self, cell: Cell) -> float | None:
        samples = self.samples.get(cell)
        return median(samples) if samples and cell[0] not in self.failures else None

    def ratio(self, cell: Cell, base: Cell) -> float | None:
        """Return the median ratio to ``base`` in the same round."""
        return self._compared(cell, base, operator.truediv)

    def added(self, cell: Cell, base: Cell) -> float | None:
        """Return the median difference from ``base`` in the same round."""
        return self._compared(cell, base, operator.sub)

    def _compared(
        self, cell: Cell, base: Cell, compare: Callable[[float, float], float]
    ) -> float | None:
        if self.median(cell) is None or self.median(base) is None:
            return None
        return median(map(compare, self.samples[cell], self.samples[base]))

    def left_out(self) -> list[str]:
        return [f"LEFT OUT: {name}: {why}" for name, why in self.failures.items()]


@dataclass(frozen=True)
class Target:
    """``cell`` should take at least ``wanted`` times as long as ``base``."""

    title: str
    cell: Cell
    base: Cell
    wanted: float

    def judge(self, timings: Timings) -> str:
        got = timings.ratio(self.cell, self.base)
        if got is None:
            return f"----  {self.title}: not measured"
        word = "PASS" if got >= self.wanted else "FAIL"
        return f"{word}  {self.title}: x{got:.2f}, wanted x{self.wanted:.2f}"


def show(figure: float | None, form: str = ".1f") -> str:
    return "-" if figure is None else format(figure, form)


def versions(packages: Iterable[str]) -> str:
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
