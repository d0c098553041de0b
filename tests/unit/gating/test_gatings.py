"""What every gating owes, and that a gating which decides needs nothing more of the Protocol."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pgmoe.errors import ConfigError
from pgmoe.gating.make import GATINGS, GatingInputs, make_gating
from pgmoe.routing import Gating, Prediction, Routing
from tests.support.routings import play, random_step, routing, trace_of

NUM_EXPERTS, TOP_K = 7, 2
ENCODER, DECODER = (0, 1), (2, 3, 4)


def random_passes(seed: int) -> list[tuple[str, list[Routing]]]:
    """Interleaved sequences of an encoder-decoder, some beginning late."""
    draw = random.Random(seed)
    begun: set[str] = set()
    found = []
    for count in range(40):
        sequence = draw.choice("abc"[: 1 + count // 10])
        layers = DECODER if sequence in begun else ENCODER + DECODER
        begun.add(sequence)
        step = random_step(draw, layers, NUM_EXPERTS, TOP_K)
        looked = [
            one if one.layer == ENCODER[-1] else replace(one, ahead=following.ids)
            for one, following in pairwise(step)
        ]
        found.append((sequence, [*looked, step[-1]]))
    return found


def make(name: str, passes: Sequence[tuple[str, Sequence[Routing]]]) -> Gating:
    num_layers = len(ENCODER + DECODER)
    trace = trace_of(passes, num_layers, NUM_EXPERTS)
    selections = [None if layer in (ENCODER[-1], DECODER[-1]) else torch.clone for layer in range(num_layers)]
    early = {"selections": selections, "level": 1} if name == "pregated" else {}
    return make_gating(name, GatingInputs((NUM_EXPERTS,) * num_layers, trace=trace, **early))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", GATINGS)
def test_predictions_name_distinct_experts_of_coming_layers_the_likeliest_first(name: str, seed: int) -> None:
    passes = random_passes(seed)
    gating = make(name, passes)
    num_predictions = 0
    for sequence, step in passes:
        for one, predictions in zip(step, play(gating, sequence, step), strict=True):
            assert len({p.layer for p in predictions}) == len(predictions)
            num_predictions += len(predictions)
            for p in predictions:
                assert p.layer in ENCODER + DECODER
                assert p.layer != one.layer
                assert len(set(p.experts)) == len(p.experts) == len(p.scores) > 0
                assert set(p.experts) <= set(range(NUM_EXPERTS))
                assert sorted(p.scores, reverse=True) == list(p.scores)
    assert (num_predictions > 50) == (name != "on_demand")


@pytest.mark.parametrize("name", GATINGS)
def test_the_same_routing_gives_the_same_predictions(name: str) -> None:
    passes = random_passes(0)
    first, second = make(name, passes), make(name, passes)
    for sequence, step in passes:
        assert play(first, sequence, step) == play(second, sequence, step)


@pytest.mark.parametrize("name", GATINGS)
def test_a_gating_works_without_being_told_of_sequences(name: str) -> None:
    passes = random_passes(0)
    gating = make(name, passes)
    for _, step in passes:
        for one in step:
            gating.predict(one)


def test_only_yardsticks_escape_the_limiter_and_only_who_knows_is_exact() -> None:
    passes = random_passes(0)
    gatings = {name: make(name, passes) for name in GATINGS}
    assert {name for name, gating in gatings.items() if not gating.limited} == {"prefetch_all", "oracle"}
    exact = {
        name
        for name, gating in gatings.items()
        for sequence, step in passes
        for predictions in play(gating, sequence, step)
        for p in predictions
        if p.exact
    }
    assert exact == {"oracle", "pregated"} == {name for name, gating in gatings.items() if gating.exact}


def test_an_unknown_gating_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"gating 'psychic' is unknown; choose one of .*\bspeculative\b"):
        make_gating("psychic", GatingInputs((4,)))


def test_an_oracle_wants_a_trace_of_this_model() -> None:
    with pytest.raises(ConfigError, match="pgmoe trace"):
        make_gating("oracle", GatingInputs((4,)))
    other = trace_of([("a", [routing(0, (0, 1))])], 1, 8)
    with pytest.raises(ConfigError, match=r"tiny.*\(8,\).*\(4,\)"):
        make_gating("oracle", GatingInputs((4,), trace=other))


def test_all_experts_of_the_layer_that_followed_last_time_are_prefetched() -> None:
    gating = make_gating("prefetch_all", GatingInputs((3, 4, 5)))
    first = play(gating, "a", [routing(layer, (0, 1)) for layer in (0, 1, 2)])
    assert [[(p.layer, p.experts) for p in one] for one in first] == [
        [(1, (0, 1, 2, 3))],
        [(2, (0, 1, 2, 3, 4))],
        [],
    ]
    again = play(gating, "b", [routing(layer, (0, 1)) for layer in (0, 1, 2)])
    assert [p.layer for p in again[2]] == [0]


class PreGated:
    """Layer i's input decides layer i + 1's experts: the whole of it, as the Protocol stands."""

    predicts = True
    limited = False
    exact = True
    reach = 1

    def __init__(self, gates: Sequence[Tensor], top_k: int) -> None:
        self._gates = gates  # (E, D): gates[i] chooses for layer i + 1
        self._top_k = top_k

    def begin(self, sequences: Sequence[str]) -> None:
        pass

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        return (hidden @ self._gates[layer].t()).topk(self._top_k).indices if layer < 3 else None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        experts = tuple(sorted({e for row in routing.ahead for e in row}))
        if not experts:
            return ()
        return [Prediction(routing.layer + 1, experts, (1.0,) * len(experts), exact=True)]


def test_a_pre_gated_model_selects_the_next_layer_through_the_same_protocol() -> None:
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(3, NUM_EXPERTS, 8, generator=generator)
    gating: Gating = PreGated(list(gates), TOP_K)
    hidden = torch.randn(5, 8, generator=generator)
    selected = torch.zeros(5, TOP_K, dtype=torch.int64)
    gating.begin(["a"])
    for layer in range(4):
        ahead = gating.look_ahead(layer, hidden)
        rows = () if ahead is None else ahead.tolist()
        found = gating.predict(Routing(layer, selected.tolist(), torch.ones(5, TOP_K), rows))
        if layer == 3:
            assert not found
            continue
        selected = (hidden @ gates[layer].t()).topk(TOP_K).indices
        assert [(p.layer, set(p.experts), p.exact) for p in found] == [
            (layer + 1, set(selected.flatten().tolist()), True)
        ]
        hidden = hidden.roll(1, -1)
