from __future__ import annotations

import json

import pytest

from pgmoe.errors import ConfigError
from pgmoe.experts.policies import POLICIES
from pgmoe.simulation.report import simulate
from tests.unit.simulation.conftest import random_trace

TRACE = random_trace(0, num_steps=50)


def test_every_policy_stands_beside_the_optimum_for_every_budget() -> None:
    result = simulate(TRACE, ["lru", "lfu"], ["25%", "12"], bandwidth=4000, pools=["global", "per-layer"])
    rows = [(o.num_slots, o.pools, o.policy) for o in result.outcomes]
    assert rows == [
        (slots, pools, policy)
        for slots in (6, 12)
        for pools in ("global", "per-layer")
        for policy in ("belady", "lru", "lfu")
    ]
    assert (result.num_steps, result.num_sequences) == (50, 2)
    for o in result.outcomes:
        best = next(b for b in result.outcomes if b.policy == "belady" and b.num_slots == o.num_slots)
        assert o.over_belady == pytest.approx(o.misses / best.misses)
        assert o.over_belady >= 1
        assert o.hit_rate == pytest.approx(1 - o.misses / result.uses)
        assert o.num_bytes == o.misses * 1000
        assert o.least_s == pytest.approx(o.misses / 4)
        assert o.share == o.num_slots / 24


def test_more_slots_never_cost_the_optimum_misses() -> None:
    budgets = [str(slots) for slots in range(1, 25)]
    outcomes = simulate(TRACE, [], budgets, bandwidth=1, pools=["global"]).outcomes
    misses = [o.misses for o in outcomes]
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] <= 24


def test_json_has_all_of_it() -> None:
    result = simulate(TRACE, list(POLICIES), ["50%"], bandwidth=1, pools=["global"])
    read = json.loads(result.json())
    assert read["uses"] == result.uses
    assert [o["policy"] for o in read["outcomes"]] == ["belady", *POLICIES]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy 'mru' is unknown"):
        simulate(TRACE, ["mru"], ["50%"], bandwidth=1, pools=["global"])
