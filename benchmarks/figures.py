"""The samples of a run, and the figures computed from them. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from .contenders import ALL, GTHREAD, HAPROXY_HASH, NGINX_HASH, STICKY, Contender
from .load import Sample
from .workloads import ALTERNATE, NEW, NEW_WITHOUT_COOKIE, PINNED, WORKLOADS, Workload

# A pair of samples is meaningless if one of them had a third less of the CPUs.
NOISY = 0.3

Cell = tuple[Workload, Contender]


@dataclass
class Figures:
    """One sample for each workload, contender and round."""

    samples: dict[Cell, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def add(self, cell: Cell, sample: Sample) -> None:
        self.samples[cell].append(sample)

    def rounds(self, cell: Cell) -> list[Sample]:
        return self.samples.get(cell, [])

    def median(self, cell: Cell, figure: Callable[[Sample], float]) -> float:
        return median(figure(sample) for sample in self.rounds(cell))

    def ratios(self, cell: Cell, base: Contender) -> list[float]:
        """Return the ratios to ``base`` in the same round, where other load was the same."""
        return [
            mine.per_second / its.per_second
            for mine, its in zip(self.rounds(cell), self.rounds((cell[0], base)), strict=False)
        ]

    def others(self) -> str:
        shares = [sample.others for samples in self.samples.values() for sample in samples]
        return (
            f"other programs and guests used {median(shares):.0%} of the CPUs meanwhile,"
            f" {max(shares):.0%} at most"
            + (": TOO MUCH to compare requests/s, see --calm" if max(shares) > NOISY else "")
        )

    def bad(self) -> list[str]:
        return [
            f"{workload.key}, {contender.name}: {sample.errors}"
            for (workload, contender), samples in self.samples.items()
            for sample in samples
            if sample.bad
        ]


@dataclass(frozen=True)
class Target:
    """A ratio that Sticky should reach."""

    title: str
    workload: Workload
    base: Contender
    wanted: float

    def judge(self, figures: Figures) -> str:
        ratios = figures.ratios((self.workload, STICKY), self.base)
        if not ratios:
            return f"----  {self.title}: not measured"
        got = median(ratios)
        word = "PASS" if got >= self.wanted else "FAIL"
        return f"{word}  {self.title}: x{got:.2f}, wanted x{self.wanted:.2f}"


TARGETS = (
    Target("pinned, of gthread", PINNED, GTHREAD, 0.97),
    Target("worst case, of gthread", ALTERNATE, GTHREAD, 0.8),
    Target("new connections, of gthread", NEW, GTHREAD, 1.2),
    Target("new connections without a cookie, of gthread", NEW_WITHOUT_COOKIE, GTHREAD, 1.2),
    Target("worst case, of nginx", ALTERNATE, NGINX_HASH, 1.0),
    Target("worst case, of HAProxy", ALTERNATE, HAPROXY_HASH, 1.0),
)

COLUMNS = (
    "",
    "requests/s",
    "of stock",
    "(rounds)",
    "CPU-us/request",
    "p50 ms",
    "p99 ms",
    "errors",
)


def rows(figures: Figures, workload: Workload) -> list[tuple[str, ...]]:
    return [
        row(figures, (workload, contender))
        for contender in workload.contenders
        if figures.rounds((workload, contender))
    ]


def row(figures: Figures, cell: Cell) -> tuple[str, ...]:
    (base,) = (each for each in ALL if each.name == cell[1].base)
    ratios = figures.ratios(cell, base)
    return (
        cell[1].name,
        f"{figures.median(cell, lambda s: s.per_second):.0f}",
        f"x{median(ratios):.2f}" if ratios else "-",
        f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "-",
        f"{figures.median(cell, lambda s: s.cpu_us):.0f}",
        f"{figures.median(cell, lambda s: s.p50):.2f}",
        f"{figures.median(cell, lambda s: s.p99):.2f}",
        str(sum(sample.bad for sample in figures.rounds(cell))),
    )


def tables(figures: Figures) -> list[tuple[str, list[tuple[str, ...]]]]:
    found = [(workload.title, rows(figures, workload)) for workload in WORKLOADS]
    return [(title, table) for title, table in found if table]
