from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pgmoe.experts.footprints import NEWEST_RATE, USUAL_RATE, Footprints


def run(
    footprints: Footprints, tokens: dict[str, Sequence[int]], ids: Sequence[Sequence[Sequence[int]]]
) -> None:
    """A pass of these sequences' tokens; ids (L, N, K)."""
    footprints.begin(list(tokens), list(tokens.values()))
    for layer, rows in enumerate(ids):
        footprints.enter(layer, torch.tensor(rows))


def test_who_has_run_is_judged_by_the_experts_of_its_tokens() -> None:
    footprints = Footprints([3, 3], 4)
    run(footprints, {"a": [7, 8], "b": [9]}, [[[0, 1], [0, 2], [1, 2]], [[0, 1], [0, 1], [2, 0]]])
    assert footprints.of("a", [7, 8]).tolist() == [[1, 0.5, 0.5], [1, 1, 0]]
    assert footprints.of("b", [9]).tolist() == [[0, 1, 1], [1, 0, 1]]


def test_newer_tokens_weigh_more_than_older_ones() -> None:
    footprints = Footprints([2], 4)
    run(footprints, {"a": [7]}, [[[0]]])
    run(footprints, {"a": [8]}, [[[1]]])
    assert footprints.of("a", [7, 8])[0] == pytest.approx([1 - NEWEST_RATE, NEWEST_RATE])


def test_who_has_not_run_is_judged_by_what_its_tokens_used_for_others() -> None:
    footprints = Footprints([3], 4)
    run(footprints, {"a": [7, 8], "b": [9]}, [[[0], [1], [2]]])
    assert footprints.of("new", [7, 9, 9, 7]).tolist() == [[0.5, 0, 0.5]]


def test_tokens_that_never_ran_are_taken_as_usual_ones() -> None:
    footprints = Footprints([2], 4)
    assert footprints.of("new", [1]).tolist() == [[0, 0]]
    run(footprints, {"a": [7]}, [[[0]]])
    assert footprints.of("new", [7, 1])[0] == pytest.approx([(1 + USUAL_RATE) / 2, 0])


def test_ids_beyond_a_layers_experts_stand_for_none() -> None:
    footprints = Footprints([2, 4], 4)
    run(footprints, {"a": [7]}, [[[0, 2]], [[3, 4]]])
    assert footprints.of("a", [7]).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_layers_that_a_pass_leaves_out_keep_what_is_known_of_them() -> None:
    footprints = Footprints([2, 2], 4)
    run(footprints, {"a": [7]}, [[[0]], [[1]]])
    footprints.begin(["a"], [[8]])
    footprints.enter(1, torch.tensor([[0]]))
    assert footprints.of("a", [7, 8]).tolist() == [[1, 0], pytest.approx([NEWEST_RATE, 1 - NEWEST_RATE])]
    assert footprints.of("new", [7]).tolist() == [[1, 0], [0, 1]], "8 is not learned by half"


def test_a_pass_that_nobody_announced_counts_for_nobody() -> None:
    footprints = Footprints([2], 4)
    footprints.enter(0, torch.tensor([[0]]))
    footprints.begin(["a"], [[7]])
    footprints.enter(0, torch.tensor([[0], [1]]))
    assert footprints.of("a", [7]).tolist() == [[0, 0]]


def test_those_that_ran_longest_ago_are_forgotten_beyond_the_limit() -> None:
    footprints = Footprints([4], 2, num_tokens=2)
    for expert, (name, token) in enumerate({"a": 7, "b": 8, "c": 9}.items()):
        run(footprints, {name: [token]}, [[[expert]]])
    assert footprints.of("c", [1]).tolist() == [[0, 0, 1, 0]]
    usual = footprints.of("new", [1])
    assert footprints.of("a", [1]).tolist() == usual.tolist()
    assert footprints.of("new", [7]).tolist() == usual.tolist()
    assert footprints.of("new", [8]).tolist() == [[0, 1, 0, 0]]


def test_a_name_that_is_given_again_knows_nothing_of_who_had_it_before() -> None:
    footprints = Footprints([2], 4)
    run(footprints, {"a": [7]}, [[[0]]])
    footprints.forget("a")
    footprints.forget("nobody")
    run(footprints, {"b": [8]}, [[[1]]])
    assert footprints.of("a", [8]).tolist() == [[0, 1]]
    run(footprints, {"a": [9]}, [[[1]]])
    assert footprints.of("a", [9]).tolist() == [[0, 1]]


def test_a_pass_that_breaks_off_leaves_the_other_layers_unknown() -> None:
    footprints = Footprints([2, 2], 4)
    footprints.begin(["a"], [[7]])
    footprints.enter(0, torch.tensor([[0]]))
    run(footprints, {"a": [7]}, [[[0]], [[1]]])
    assert footprints.of("a", [7]).tolist() == [[1, 0], [0, 1]]


def test_of_more_sequences_than_are_remembered_the_last_tokens_of_the_first_count() -> None:
    footprints = Footprints([2], 1)
    run(footprints, {"a": [7], "b": [8]}, [[[0], [1]]])
    assert footprints.of("a", [1]).tolist() == [[1, 0]]


def test_footprints_are_the_shares_that_plain_loops_count() -> None:
    draw = random.Random(seed := random.randrange(2**32))
    for _ in range(20):
        num_layers, num_experts, top_k = draw.randint(1, 3), draw.randint(4, 9), draw.randint(1, 3)
        lengths = {str(n): draw.randint(1, 6) for n in range(draw.randint(1, 4))}
        tokens = {name: [draw.randrange(99) for _ in range(n)] for name, n in lengths.items()}
        ids = [
            [draw.sample(range(num_experts), top_k) for _ in range(sum(lengths.values()))]
            for _ in range(num_layers)
        ]
        footprints = Footprints([num_experts] * num_layers, 8)
        run(footprints, tokens, ids)
        first = 0
        for name, length in lengths.items():
            wanted = np.zeros((num_layers, num_experts))
            for layer in range(num_layers):
                for row in ids[layer][first : first + length]:
                    wanted[layer, row] += 1 / length
            found = footprints.of(name, tokens[name])
            np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=str(seed))
            first += length
