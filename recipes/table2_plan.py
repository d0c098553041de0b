"""What the paper's Table II and Figure 13 are made of, at small scale: tasks, levels, seeds and budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgmoe.bench.quality_result import PaperFigure
from pgmoe.pre_gating import Scope
from pgmoe.training.finetune_config import Device, Precision
from pgmoe.training.pregate import Start
from recipes import closed_book, extractive, summary
from recipes.switch_model import SwitchSize

UNTUNED = "span_corruption"
"""The task of a run that is not fine-tuned: what pre-gating alone costs."""
STARTS: tuple[Start, ...] = ("next", "own", "fresh")
ANSWER_METRICS = ("exact_match", "f1", "loss")
SUMMARY_METRICS = ("rouge1", "rouge2", "loss")
PAPER = (
    PaperFigure(closed_book.NAME, "CB-WebQA EM", 26.0, 28.2),
    PaperFigure(extractive.NAME, "SQuAD EM", 77.4, 78.2),
    PaperFigure(summary.NAME, "XSum ROUGE-1", 34.6, 34.7),
)
"""Switch-Base-8, Table II."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training: AdamW, cosine to zero after a warm-up of a tenth of the steps, at most 200."""

    steps: int
    batch_size: int
    learning_rate: float
    max_tokens: int
    """Of a prompt and of its completion; rows with longer prompts are not trained on."""

    @property
    def warm_up_steps(self) -> int:
        """See the class."""
        return min(200, self.steps // 10)

    def words(self) -> str:
        """For the conditions of a result."""
        return (
            f"{self.steps} steps of {self.batch_size} rows of at most {self.max_tokens} tokens, "
            f"rate {self.learning_rate:g}"
        )


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One column of fine-tunings: the same budget for every level."""

    name: str
    """Its folder in the data."""
    budget: Budget
    max_answer_tokens: int
    metrics: tuple[str, ...] = ANSWER_METRICS


@dataclass(frozen=True)
class Run:
    """One model to make and score."""

    task: str
    level: int
    start: Start | None
    """None at level 0."""
    seed: int

    @property
    def name(self) -> str:
        """Unlike any other run's of a plan."""
        return "-".join([self.task, f"level{self.level}", *filter(None, [self.start]), f"seed{self.seed}"])


def _tasks() -> tuple[TaskPlan, ...]:
    return (
        TaskPlan(
            name=closed_book.NAME,
            budget=Budget(steps=180, batch_size=128, learning_rate=1e-3, max_tokens=32),
            max_answer_tokens=10,
        ),
        TaskPlan(
            name=extractive.NAME,
            budget=Budget(steps=110, batch_size=64, learning_rate=1e-3, max_tokens=96),
            max_answer_tokens=24,
        ),
        TaskPlan(
            name=summary.NAME,
            budget=Budget(steps=110, batch_size=64, learning_rate=1e-3, max_tokens=96),
            max_answer_tokens=32,
            metrics=SUMMARY_METRICS,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides the result."""

    data: Path
    """Folder that `make data` writes."""
    size: SwitchSize = field(default_factory=SwitchSize)
    pretraining: Budget = Budget(steps=1_200, batch_size=64, learning_rate=1e-3, max_tokens=96)
    multi_task: Budget = Budget(steps=1_500, batch_size=64, learning_rate=1e-3, max_tokens=96)
    """Of all tasks together, as T5 mixes them into its pre-training; conventional, and once for all runs. So
    few tokens of pre-training alone would be little for runs as short as these."""
    tasks: tuple[TaskPlan, ...] = field(default_factory=_tasks)
    levels: tuple[int, ...] = (0, 1, 2, 3)
    seeds: tuple[int, ...] = (0, 1, 2)
    scope: Scope = "decoder"
    """As the paper's artifact has it. The encoder runs once, over a whole prompt, which needs nearly every
    expert whatever is known early: to pre-gate it too would cost quality and hide next to nothing."""
    start: Start = "next"
    compare_starts_on: str | None = None
    """A task at whose level 1 every start is run."""
    num_test: int | None = None
    """Questions of each test that are put; None: all."""
    precision: Precision = "bf16"
    """Of matrix products in training: bf16 is a third faster if steps have 2,000 tokens or more. Answers are
    always generated in float32."""
    device: Device = "cpu"

    def task(self, name: str) -> TaskPlan:
        """By its name."""
        return next(task for task in self.tasks if task.name == name)

    def runs(self) -> tuple[Run, ...]:
        """All, each once; every level of a seed before the next seed."""
        return tuple(dict.fromkeys(self._runs()))

    def _runs(self) -> Iterator[Run]:
        for level in self.levels:
            yield self._run(UNTUNED, level, self.seeds[0])
        for seed in self.seeds:
            for task in self.tasks:
                for level in self.levels:
                    yield self._run(task.name, level, seed)
        if self.compare_starts_on is not None:
            for start in STARTS:
                for seed in self.seeds:
                    yield Run(UNTUNED, 1, start, seed if start == "fresh" else self.seeds[0])
                    yield Run(self.compare_starts_on, 1, start, seed)

    def _run(self, task: str, level: int, seed: int) -> Run:
        return Run(task, level, self.start if level else None, seed)
