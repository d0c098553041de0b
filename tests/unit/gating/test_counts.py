from __future__ import annotations

import random

import numpy as np
import pytest

from pgmoe.gating.counts import PairCounts, RepeatCounts


@pytest.mark.parametrize("seed", range(10))
def test_pairs_give_the_mean_share_of_what_followed(seed: int) -> None:
    draw = random.Random(seed)
    num, num_later = 5, 4
    pairs = PairCounts((num, num_later))
    times = np.zeros((num, num_later))
    for _ in range(30):
        num_tokens = draw.randint(1, 5)
        rows = [draw.sample(range(num + 1), 3) for _ in range(num_tokens)]
        later = [draw.sample(range(num_later + 1), 2) for _ in range(num_tokens)]
        pairs.learn(0, rows, 1, later)
        for row, later_row in zip(rows, later, strict=True):
            for a in row:
                for b in later_row:
                    if a < num and b < num_later:
                        times[a, b] += 1
    asked = [draw.sample(range(num + 1), 3) for _ in range(3)]
    users = [a for row in asked for a in row if a < num]
    expected = np.mean([times[a] / (times[a].sum() + 1) for a in users], axis=0)
    assert pairs.scores(0, asked, 1) == pytest.approx(expected)


def test_pairs_know_nothing_of_layers_that_never_met_and_of_no_experts() -> None:
    pairs = PairCounts((4, 4))
    assert not pairs.scores(0, [[0]], 1).any()
    pairs.learn(0, [[0]], 1, [[1]])
    assert not pairs.scores(1, [[1]], 0).any()
    assert not pairs.scores(0, [[4]], 1).any()
    assert pairs.scores(0, [[0]], 1).tolist() == [0, 0.5, 0, 0]


def test_repeats_count_what_followed_a_history_and_forget_the_longest_unused() -> None:
    repeats = RepeatCounts(2)
    first, second, third = (((0, (e,)), (1, (e,))) for e in range(3))
    repeats.learn(first, 2, [4, 5])
    repeats.learn(second, 2, [6])
    repeats.learn(first, 2, [5])
    assert repeats.followed(first, 2) == {4: 1, 5: 2}
    repeats.learn(third, 2, [7])
    assert len(repeats) == 2
    assert repeats.followed(second, 2) == {}
    assert repeats.followed(first, 2) == {4: 1, 5: 2}
    assert repeats.followed(first, 3) == {}
