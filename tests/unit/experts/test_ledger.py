from __future__ import annotations

import random

import torch

from pgmoe.experts.ledger import Ledger, Uses
from tests.support.fresh import fresh_seed


def test_each_sequence_is_told_of_the_experts_that_its_own_tokens_used() -> None:
    ledger = Ledger([4])
    ledger.begin(["a", "b"], [1, 2])
    ledger.enter(0, torch.tensor([[0, 3], [3, 1], [1, 4]]), missing={3})  # 4 stands for none
    assert ledger.take() == {"a": Uses(hits=1, misses=1), "b": Uses(hits=1, misses=1)}
    assert ledger.take() == {}


def test_passes_of_one_step_add_up() -> None:
    ledger = Ledger([2])
    ledger.begin(["a"], [3])
    ledger.enter(0, torch.tensor([[0], [1], [0]]), missing={0, 1})
    ledger.begin(["a", "b"], [1, 1])
    ledger.enter(0, torch.tensor([[0], [0]]), missing=())
    assert ledger.take() == {"a": Uses(hits=1, misses=2), "b": Uses(hits=1, misses=0)}


def test_a_pass_that_nobody_announced_is_left_out() -> None:
    ledger = Ledger([2])
    ledger.begin(["a"], [3])
    ledger.enter(0, torch.tensor([[0]]), missing={0})
    assert ledger.take() == {"a": Uses()}


def test_counts_are_those_of_sets() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(50):
        rows = [draw.randint(1, 5) for _ in range(draw.randint(1, 4))]
        experts_per_layer = [draw.randint(3, 9) for _ in range(draw.randint(1, 4))]
        ledger, names = Ledger(experts_per_layer), [str(n) for n in range(len(rows))]
        expected = {name: Uses() for name in names}
        ledger.begin(names, rows)
        for layer, num_experts in enumerate(experts_per_layer):
            top_k = draw.randint(1, 3)
            ids = [draw.sample(range(num_experts + 2), top_k) for _ in range(sum(rows))]
            missing = set(draw.sample(range(num_experts), 2))
            ledger.enter(layer, torch.tensor(ids), missing)
            for name, num_rows in zip(names, rows, strict=True):
                own, ids = ids[:num_rows], ids[num_rows:]
                used = {e for row in own for e in row if e < num_experts}
                expected[name].hits += len(used - missing)
                expected[name].misses += len(used & missing)
        assert ledger.take() == expected
