"""What a training step is made of, counted while its passes run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgmoe.training.objective import Loss


@dataclass(frozen=True)
class Step:
    """One optimiser step that is done."""

    number: int
    """1 for the first."""
    num_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    seconds_left: float


Progress = Callable[[Step], None]


class StepFigures:
    """Parts of the loss, tokens and time of the step under way."""

    def __init__(self, accelerator: Any) -> None:
        """`accelerator`: joins the figures of all workers."""
        self._accelerator = accelerator
        self._parts: dict[str, Tensor] = {}
        self._num_tokens = 0
        self._since = time.monotonic()

    def add(self, loss: Loss, num_tokens: int) -> None:
        """One pass: its share of the step's sums, and the tokens it read."""
        self._num_tokens += num_tokens
        shares = self._accelerator.num_processes  # what is summed is averaged over workers later
        parts = {"ce": loss.ce * shares, "aux": loss.aux}
        if loss.kl is not None:
            parts["kl"] = loss.kl * shares
        for name, part in parts.items():
            self._parts[name] = self._parts[name] + part if name in self._parts else part

    def take(self, history: Sequence[dict[str, float]]) -> dict[str, float]:
        """End the step and begin the next. `history`: of the steps before, whose counts go on."""
        now = time.monotonic()
        before = next((row for row in reversed(history) if "tokens" in row), {})
        figures = {name: float(self._accelerator.reduce(p, "mean")) for name, p in self._parts.items()}
        tokens = torch.tensor(self._num_tokens, device=self._accelerator.device)
        count = int(self._accelerator.reduce(tokens, "sum"))
        step_s = max(now - self._since, 1e-9)
        figures["tokens"] = before.get("tokens", 0) + count
        figures["tokens_per_s"] = count / step_s
        figures["seconds"] = before.get("seconds", 0.0) + step_s
        self._parts, self._num_tokens, self._since = {}, 0, now
        return figures

    def pause(self) -> None:
        """Do not count the time since the last step: it went into something else."""
        self._since = time.monotonic()
