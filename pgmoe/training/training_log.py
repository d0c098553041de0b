"""What happened in each step of a training, as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pgmoe.errors import ConfigError
from pgmoe.picture import new_figure, save_picture

TABLE, PICTURE = "training.parquet", "training.png"
INTEGERS = ("step", "tokens")
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "ce",
    "kl",
    "aux",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "seconds",
    "eval_loss",
    "eval_perplexity",
)
"""`loss` is what is trained on, `aux` as weighted in it; `tokens` and `seconds` are since the start."""


@dataclass(frozen=True)
class TrainingLog:
    """One row a step, ascending; what was not measured is None."""

    rows: Sequence[Mapping[str, float | None]]

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> Self:
        """Of Trainer's log, in which a step has several entries."""
        steps: dict[int, dict[str, float | None]] = {}
        for entry in history:
            row = steps.setdefault(int(entry["step"]), dict.fromkeys(COLUMNS))
            row.update({name: entry[name] for name in COLUMNS if name in entry})
        return cls([steps[step] for step in sorted(steps)])

    @property
    def num_steps(self) -> int:
        """Steps done."""
        return int(self.last("step") or 0)

    @property
    def num_tokens(self) -> int:
        """Tokens trained on, repetitions included."""
        return int(self.last("tokens") or 0)

    def last(self, name: str) -> float | None:
        """The latest value of a column."""
        return next((row[name] for row in reversed(self.rows) if row[name] is not None), None)

    def write(self, folder: Path) -> None:
        """As Parquet. Raises OSError."""
        kinds = {name: pa.int64() if name in INTEGERS else pa.float64() for name in COLUMNS}
        table = {name: pa.array([row[name] for row in self.rows], kind) for name, kind in kinds.items()}
        pq.write_table(pa.table(table), folder / TABLE)

    def plot(self, folder: Path) -> bool:
        """Losses and learning rate by step. False, and no file, without matplotlib."""
        try:
            figure = new_figure(8, 5)
        except ConfigError:
            return False
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for name in ("loss", "ce", "kl", "eval_loss"):
            points = [(row["step"], row[name]) for row in self.rows if row[name] is not None]
            if points:
                upper.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 20 else None)
        upper.set_ylabel("nats a token")
        upper.legend()
        rates = [(row["step"], row["learning_rate"]) for row in self.rows if row["learning_rate"] is not None]
        lower.plot(*zip(*rates, strict=True))
        lower.set_ylabel("learning rate")
        lower.set_xlabel("step")
        save_picture(figure, folder / PICTURE, 110)
        return True
