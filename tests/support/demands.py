"""Which experts had to be fetched at their layer's turn, because nobody had ordered them sooner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.experts.pool import ExpertPool
from pgmoe.layout import ExpertId
from tests.support.runs import answer


def demanded(
    folder: Path, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, **options: object
) -> Counter[int]:
    """By layer, how many experts were ordered no sooner than needed while 40 tokens were made, one by one."""
    engine = Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", **options}))
    orders: list[int] = []
    demand = ExpertPool.demand
    after_prompt: list[int] = []

    def noted(pool: ExpertPool, expert: ExpertId) -> bool:
        orders.append(expert.layer)
        return demand(pool, expert)

    monkeypatch.setattr(ExpertPool, "demand", noted)
    try:
        answer(engine, prompt, 40, lambda: after_prompt.append(len(orders)))
    finally:
        engine.close()
        monkeypatch.undo()
    # The prompt's tokens use more experts than there are slots.
    return Counter(orders[after_prompt[0] :])
