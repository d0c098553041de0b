from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from pgmoe.gating.make import GatingInputs, make_gating
from pgmoe.gating.speculative import Speculative
from tests.support.routings import play, routing


def test_it_looks_with_the_layers_own_look_ahead_and_leaves_its_input_alone() -> None:
    asked: list[Tensor] = []

    def ahead(hidden: Tensor) -> Tensor:
        asked.append(hidden)
        return torch.full((len(hidden), 2), 3)

    gating = Speculative([ahead, None], (4, 4))
    hidden = torch.randn(5, 8)
    found = gating.look_ahead(0, hidden)
    assert found is not None
    assert found.tolist() == [[3, 3]] * 5
    assert asked[0] is hidden
    assert gating.look_ahead(1, hidden) is None


@pytest.mark.parametrize("seed", range(20))
def test_what_most_tokens_want_comes_first_and_entries_for_no_expert_are_skipped(seed: int) -> None:
    draw = random.Random(seed)
    num_experts = 6
    rows = [draw.sample(range(num_experts + 1), 3) for _ in range(draw.randint(1, 6))]
    gating = Speculative([None, None], (9, num_experts))
    (found,) = gating.predict(routing(0, *([[0, 1, 2]] * len(rows)), ahead=rows))
    assert (found.layer, found.exact) == (1, False)
    times = Counter(e for row in rows for e in row if e < num_experts)
    assert set(found.experts) == set(times)
    best = {e: min(row.index(e) for row in rows if e in row) for e in times}
    assert list(found.experts) == sorted(times, key=lambda e: (-times[e], best[e], e))
    for expert, score in zip(found.experts, found.scores, strict=True):
        assert times[expert] - 1 < score <= times[expert]


def test_where_nothing_can_be_looked_ahead_statistics_fill_in() -> None:
    gating = Speculative([lambda hidden: hidden, None], (8, 8))
    for _ in range(3):
        after = play(gating, "a", [routing(0, (0, 1), ahead=[(6, 7)]), routing(1, (2, 3))])
    assert [(p.layer, p.experts) for p in after[0]] == [(1, (6, 7))]
    assert [(p.layer, set(p.experts)) for p in after[1]] == [(0, {0, 1})]


def test_where_no_look_ahead_was_asked_for_of_a_layer_that_has_one_nothing_is_said() -> None:
    gating = Speculative([lambda hidden: hidden, None], (8, 8))
    for _ in range(3):
        after = play(gating, "a", [routing(0, (0, 1)), routing(1, (2, 3))])
    assert [len(one) for one in after] == [0, 1]


def test_without_any_look_ahead_it_is_statistics() -> None:
    gating = make_gating("speculative", GatingInputs((8, 8)))
    for _ in range(3):
        after = play(gating, "a", [routing(0, (0, 1)), routing(1, (2, 3))])
    assert [(p.layer, set(p.experts)) for (p,) in after] == [(1, {2, 3}), (0, {0, 1})]
