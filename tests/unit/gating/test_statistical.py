from __future__ import annotations

import random

import pytest

from pgmoe.gating.statistical import Statistical
from pgmoe.routing import Routing
from tests.support.routings import play, routing

NUM_LAYERS, NUM_EXPERTS = 4, 16


def made() -> Statistical:
    return Statistical((NUM_EXPERTS,) * NUM_LAYERS)


class Chain:
    """Routing with a law: each of a token's experts moves on by a step that is the layer's own."""

    def __init__(self, seed: int, top_k: int = 2) -> None:
        self.draw = random.Random(seed)
        self.moves = [self.draw.randrange(1, NUM_EXPERTS) for _ in range(NUM_LAYERS)]
        self.top_k = top_k

    def step(self, num_tokens: int = 1) -> list[Routing]:
        rows = [self.draw.sample(range(NUM_EXPERTS), self.top_k) for _ in range(num_tokens)]
        return self.onward(rows)

    def onward(self, rows: list[list[int]]) -> list[Routing]:
        found = []
        for layer, move in enumerate(self.moves):
            found.append(routing(layer, *rows))
            rows = [[(e + move) % NUM_EXPERTS for e in row] for row in rows]
        return found


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_which_experts_follow_which(seed: int) -> None:
    chain, gating = Chain(seed), made()
    for _ in range(150):
        play(gating, "a", chain.step())
    right = wrong = 0
    for _ in range(20):
        step = chain.step()
        found = play(gating, "a", step)
        for predictions, following in zip(found, step[1:], strict=False):
            (p,) = predictions
            assert p.layer == following.layer
            right += len(set(p.experts) & set(following.ids[0]))
            wrong += len(set(p.experts) - set(following.ids[0]))
    assert wrong < 0.1 * right


def test_a_prompt_teaches_it_token_by_token() -> None:
    chain, gating = Chain(0), made()
    play(gating, "a", chain.step(num_tokens=300))
    step = chain.step()
    found = play(gating, "b", step)
    for (p,), following in zip(found[:-1], step[1:], strict=True):
        assert set(p.experts) == set(following.ids[0])


def test_of_layers_that_it_is_not_to_guess_it_says_nothing() -> None:
    chain, gating = Chain(1), Statistical((NUM_EXPERTS,) * NUM_LAYERS, [0, 2])
    for _ in range(2):
        play(gating, "a", chain.step(num_tokens=300))
    step = chain.step()
    found = play(gating, "b", step)
    assert [[p.layer for p in predictions] for predictions in found[:-1]] == [[], [2], []]
    assert set(found[1][0].experts) == set(step[2].ids[0])


def test_the_first_layer_of_the_next_step_is_guessed_from_the_last_ones_of_this() -> None:
    gating = made()
    loops = [[routing(layer, (start, start + 8)) for layer in range(NUM_LAYERS)] for start in range(8)]
    for i in range(16):
        play(gating, "a", loops[i % 8])
    for i in range(8):
        (p,) = play(gating, "a", loops[i])[-1]
        following = loops[(i + 1) % 8][0]
        assert (p.layer, set(p.experts)) == (0, set(following.ids[0]))


def test_interleaved_sequences_do_not_mix_their_histories() -> None:
    """Either's steps repeat themselves, and after a step of one comes one of the other."""
    gating = made()
    steps = {
        "a": [routing(layer, (layer, 8)) for layer in range(NUM_LAYERS)],
        "b": [routing(layer, (layer + 4, 9)) for layer in range(NUM_LAYERS)],
    }
    for _ in range(3):
        for name in "ab":
            play(gating, name, steps[name])
    for name, other in (("a", "b"), ("b", "a")):
        (p,) = play(gating, name, steps[name])[-1]
        assert set(p.experts) == set(steps[other][0].ids[0])


@pytest.mark.parametrize(("first", "expected"), [((2, 4), {6, 7}), ((3, 4), {5, 6}), ((6, 7), {5, 6})])
def test_an_exact_history_outweighs_pairs(first: tuple[int, ...], expected: set[int]) -> None:
    """After 0 and 1 mostly 5 and 6 follow, but after 2 and 4 before them 6 and 7."""
    gating = Statistical((8, 8, 8))
    for _ in range(20):
        play(gating, "a", [routing(0, (3, 4)), routing(1, (0, 1)), routing(2, (5, 6))])
    play(gating, "a", [routing(0, (2, 4)), routing(1, (0, 1)), routing(2, (7, 6))])
    (p,) = play(gating, "a", [routing(0, first), routing(1, (1, 0))])[-1]
    assert (p.layer, set(p.experts)) == (2, expected)


def test_entries_for_no_expert_are_neither_learned_nor_predicted() -> None:
    gating = Statistical((4, 4))
    for _ in range(5):
        found = play(gating, "a", [routing(0, (0, 4)), routing(1, (4, 5))])
    assert [[p.experts for p in predictions] for predictions in found] == [[], [(0,)]]
