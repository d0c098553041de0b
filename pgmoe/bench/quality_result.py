"""How well a model answers after fine-tuning, by how far ahead its gates select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgmoe.bench.result import Record


@dataclass(frozen=True)
class QualityRun:
    """One model, made and scored."""

    name: str
    task: str
    """Of `Record.conditions`; the pre-training task's name stands for a model before fine-tuning."""
    level: int
    start: str | None
    """Where the gates that select ahead started from; None at level 0, which has none."""
    seed: int
    scores: Mapping[str, float]
    """By metric; in per cent, but `loss`, in nats a token."""
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Of the 95 % interval (Student's t); None for a single seed."""

    def text(self, digits: int, sign: str = "") -> str:
        """`41.3 ± 0.8`."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


@dataclass(frozen=True)
class QualityCell:
    """What the runs that differ in their seeds alone say together."""

    task: str
    metric: str
    level: int
    start: str | None
    num_seeds: int
    score: Estimate
    gain: Estimate | None
    """Difference from level 0 with the same seed; None at level 0."""


@dataclass(frozen=True)
class PaperFigure:
    """What the paper says of its own model."""

    task: str
    """Ours that stands for the paper's."""
    label: str
    conventional: float
    pre_gated: float


@dataclass(frozen=True)
class QualityResult(Record):
    """Every run, and means by task, metric and level."""

    start: str
    """Of the runs at all levels; those with another one are for comparison."""
    metrics: Mapping[str, tuple[str, ...]]
    """Of each task, the main one first, in the order of the table."""
    runs: tuple[QualityRun, ...]
    cells: tuple[QualityCell, ...]
    paper: tuple[PaperFigure, ...]

    def cell(self, task: str, metric: str, level: int, start: str | None = None) -> QualityCell | None:
        """That with the result's own start unless another is named; None if there are no such runs."""
        wanted = None if level == 0 else start or self.start
        found = (
            c for c in self.cells if (c.task, c.metric, c.level, c.start) == (task, metric, level, wanted)
        )
        return next(found, None)

    @property
    def levels(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(sorted({cell.level for cell in self.cells}))

    @property
    def starts(self) -> tuple[str, ...]:
        """All that were run, the result's own first."""
        others = {run.start for run in self.runs if run.start not in (None, self.start)}
        return (self.start, *sorted(start for start in others if start is not None))
