from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.experts.policies import POLICIES, make_policy
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.simulation.demand import demands
from pgmoe.simulation.replay import replay_misses
from tests.support.expert_files import PoolParts, write_layers
from tests.unit.simulation.conftest import random_trace

SHAPE = [6, 6]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("num_slots", [1, 4, 8])
def test_it_misses_as_often_as_the_pool_that_serves(tmp_path: Path, name: str, num_slots: int) -> None:
    wanted = demands(random_trace(num_slots, num_steps=40, experts_per_layer=SHAPE))
    store = DiskStore(layers := write_layers(tmp_path))
    # One reader, so that experts arrive in the order in which they are asked for.
    parts = PoolParts(layers, store, num_slots, num_readers=1, policy=name)
    for demand in wanted:
        with parts.pool.lease(demand[0].layer, [expert.expert for expert in demand]) as lent:
            assert sum(len(batch) for batch in lent) == len(demand)
    parts.pool.close()
    assert replay_misses(wanted, num_slots, make_policy(name, SHAPE)) == sum(parts.stats.misses.values())


@pytest.mark.parametrize("name", POLICIES)
def test_with_a_slot_for_each_expert_only_first_uses_miss(name: str) -> None:
    wanted = demands(random_trace(0, num_steps=30, experts_per_layer=SHAPE))
    used = {expert for demand in wanted for expert in demand}
    assert replay_misses(wanted, sum(SHAPE), make_policy(name, SHAPE)) == len(used)
