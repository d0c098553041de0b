"""Requests added to an engine by hand, and what it says to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.request import Completion, Request, SamplingParams

PROMPT = (5, 6, 7, 8)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def load(folder: Path, **options: Any) -> Engine:
    return Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", "num_readers": 2, **options}))


def add(engine: Engine, request_id: str, params: SamplingParams = SHORT, **options: Any) -> None:
    given = {"prompt_token_ids": PROMPT, **options}
    engine.add(engine.accept(Request(request_id=request_id, params=params, **given)))


def run(engine: Engine, num_steps: int | None = None) -> dict[str, list[StepOutput]]:
    """Take steps (to the end if no number is given); what each request was told."""
    told: dict[str, list[StepOutput]] = {}
    while engine.has_work and num_steps != 0:
        for output in engine.step():
            told.setdefault(output.request_id, []).append(output)
        num_steps = None if num_steps is None else num_steps - 1
    return told


def whole(told: list[StepOutput]) -> Completion:
    return Completion.join(output.piece for output in told if output.piece is not None)
