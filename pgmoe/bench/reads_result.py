"""Our reads beside the disk's own rate, and what they cost the compute beside them."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.bench.disk_rate import DiskRate
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread, paired_ratio


@dataclass(frozen=True)
class ReadsRound:
    """One way of reading in one round, with compute beside it."""

    bytes_per_s: float
    compute_per_s: float
    """Turns of the compute loop per second, meanwhile."""


@dataclass(frozen=True)
class ReadsSeries:
    """So many readers in every round."""

    num_readers: int
    rounds: tuple[ReadsRound, ...]


@dataclass(frozen=True)
class ReadsResult(Record):
    """Readers against the plain loop, round by round."""

    expert_bytes: int
    disk: tuple[tuple[DiskRate, ...], ...]
    """For each round every way in which the disk was read plainly, nothing else running."""
    compute_alone_per_s: tuple[float, ...]
    """For each round: turns of the compute loop per second without reads."""
    series: tuple[ReadsSeries, ...]

    @property
    def disk_bytes_per_s(self) -> list[float]:
        """The disk's own rate in each round: the best of the ways."""
        return [max(rate.bytes_per_s for rate in rates) for rates in self.disk]

    def rate_share(self, series: ReadsSeries) -> Spread:
        """Of the disk's own rate."""
        return paired_ratio([r.bytes_per_s for r in series.rounds], self.disk_bytes_per_s)

    def slowdown(self, series: ReadsSeries) -> Spread:
        """Of compute by the reads: 0.1 is a tenth slower."""
        speeds = [r.compute_per_s for r in series.rounds]
        return Spread.of([1 - s / alone for s, alone in zip(speeds, self.compute_alone_per_s, strict=True)])
