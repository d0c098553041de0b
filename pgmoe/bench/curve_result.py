"""Speed against the share of the experts in memory, and what the hardware would have allowed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from pgmoe.bench.compare import Series
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread, paired_ratio


@dataclass(frozen=True)
class CurvePoint:
    """All lines at one share, measured in the same rounds."""

    share: float
    """Per cent of the experts' bytes."""
    num_slots: int
    limit_bytes: int | None
    """Of every process at this share, page cache included; None: without limit."""
    series: tuple[Series, ...]
    """By line."""
    references: tuple[Series, ...]
    """By engine, with all experts resident."""
    bandwidth: tuple[float, ...]
    """Bytes per second that the link below gave at the start of each round."""
    belady_bytes: float
    """Per token: what the best cache of so many slots, one that knew the future, would have had to read."""

    def has(self, line: str) -> bool:
        """Whether the line could run there."""
        return any(s.name == line for s in self.series)

    def of(self, line: str) -> Series:
        """The series of a line."""
        return next(s for s in self.series if s.name == line)


def layer_waits(series: Series) -> tuple[float, ...] | None:
    """Seconds per token that compute waited, by MoE layer: the median of the rounds. None if not counted."""
    rounds = [
        [wait / (len(m.answer.tokens) - 1) for wait in traffic.layer_stall_s]
        for m in series.rounds
        if (traffic := m.answer.traffic) is not None and traffic.layer_stall_s
    ]
    return tuple(median(waits) for waits in zip(*rounds, strict=True)) if rounds else None


@dataclass(frozen=True)
class CurveResult(Record):
    """One curve for each line."""

    points: tuple[CurvePoint, ...]
    engines: dict[str, str]
    """By line, the reference that its speeds are taken over."""
    weight_bytes: int | None = None
    """Of the whole model; None in files from before it was kept."""
    by_limit: bool = False
    """Whether the points are memory limits, and the shares of the experts follow from them."""

    @property
    def lines(self) -> tuple[str, ...]:
        """In the order in which they were measured."""
        return tuple(self.engines)

    def limit_share(self, point: CurvePoint) -> float | None:
        """The point's memory limit in per cent of the weights' bytes, if both are known."""
        if point.limit_bytes is None or self.weight_bytes is None:
            return None
        return 100 * point.limit_bytes / self.weight_bytes

    def fraction(self, point: CurvePoint, line: str) -> Spread:
        """Of the speed with all experts resident, round by round."""
        return paired_ratio(point.of(line).speeds, self.reference(point, line).speeds)

    def efficiency(self, point: CurvePoint, line: str) -> Spread:
        """Measured speed over the roofline's, round by round: 1 is all that the hardware allows."""
        return paired_ratio(point.of(line).speeds, self._roof(point, line))

    def roofline(self, point: CurvePoint, line: str) -> Spread:
        """The roofline over the speed with all experts resident, round by round."""
        return paired_ratio(self._roof(point, line), self.reference(point, line).speeds)

    def reference(self, point: CurvePoint, line: str) -> Series:
        """The line's engine with all experts resident, in the point's rounds."""
        return next(s for s in point.references if s.name == self.engines[line])

    def _roof(self, point: CurvePoint, line: str) -> list[float]:
        """Tokens/s: as fast as all resident, or as the link carries what even the best cache would miss."""
        rounds = zip(self.reference(point, line).speeds, point.bandwidth, strict=True)
        if not point.belady_bytes:
            return self.reference(point, line).speeds
        return [min(resident, rate / point.belady_bytes) for resident, rate in rounds]
