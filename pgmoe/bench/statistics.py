"""What is said of a few repeated measurements: the middle and the ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value is needed."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """`2.5 (2.1-3.0)`; without the ends if there is nothing between them."""
        middle = f"{self.median:.{digits}f}"
        if self.low == self.high:
            return middle
        return f"{middle} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How many times `baseline`, taken round by round: what slows a whole round down cancels out."""
    return Spread.of([v / b for v, b in zip(values, baseline, strict=True)])


def percentile(values: Sequence[float], per_cent: float) -> float:
    """Of at least one number; between two neighbours in proportion."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * per_cent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def first_difference(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first position at which two answers differ, as far as both go; None if they agree."""
    pairs = zip(tokens, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)
