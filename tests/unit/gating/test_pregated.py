from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgmoe.errors import ConfigError
from pgmoe.gating.make import GatingInputs, make_gating
from pgmoe.gating.on_demand import OnDemand
from pgmoe.gating.pregated import Pregated
from pgmoe.gating.speculative import Speculative
from tests.support.routings import play, routing


def select(hidden: Tensor) -> Tensor:
    return torch.full((len(hidden), 2), 3)


def inputs(level: int, num_layers: int = 4) -> GatingInputs:
    selections = [select if layer + level < num_layers else None for layer in range(num_layers)]
    return GatingInputs((8,) * num_layers, selections=selections, level=level)


def test_it_asks_the_layer_for_what_it_selected() -> None:
    gating = make_gating("pregated", inputs(level=1))
    found = gating.look_ahead(0, torch.randn(5, 8))
    assert found is not None
    assert found.tolist() == [[3, 3]] * 5
    assert gating.look_ahead(3, torch.randn(5, 8)) is None


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_selection_is_exact_and_for_the_layer_so_far_ahead(level: int) -> None:
    gating = make_gating("pregated", inputs(level))
    step = [routing(layer, (0, 1), (2, 3), ahead=[(5, 4), (8, 5)]) for layer in range(4 - level)]
    for layer, found in enumerate(play(gating, "a", step)):
        (exact,) = [p for p in found if p.exact]
        assert (exact.layer, exact.experts, exact.scores) == (layer + level, (5, 4), (2.0, 1.0))


def test_a_selection_of_dropped_tokens_alone_says_nothing() -> None:
    gating = make_gating("pregated", inputs(level=1))
    assert play(gating, "a", [routing(0, (0, 1), ahead=[(8, 8)])]) == [[]]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_layers_with_a_gate_of_their_own_are_guessed_and_no_others(level: int) -> None:
    gating = make_gating("pregated", inputs(level))
    for turn in range(4):
        step = [
            routing(layer, (layer, layer + 1), ahead=[(6, 7)] if layer + level < 4 else ())
            for layer in range(4)
        ]
        found = play(gating, "a", step)
        guessed = {p.layer: p.experts for one in found for p in one if not p.exact}
        if turn > 1:
            assert {layer: set(experts) for layer, experts in guessed.items()} == {
                layer: {layer, layer + 1} for layer in range(level)
            }


def test_auto_takes_what_the_model_can_do() -> None:
    assert isinstance(make_gating("auto", inputs(level=1)), Pregated)
    assert isinstance(make_gating("auto", GatingInputs((8, 8))), Speculative)


def test_a_model_that_selects_nothing_ahead_cannot_be_pregated() -> None:
    with pytest.raises(ConfigError, match=r"gating 'pregated': this model selects .*pgmoe pregate"):
        make_gating("pregated", GatingInputs((8, 8)))


def test_what_is_selected_already_is_not_guessed_by_routers() -> None:
    with pytest.raises(ConfigError, match=r"'speculative' guesses .*choose 'pregated'"):
        make_gating("speculative", inputs(level=1))


def test_the_baselines_can_be_had_of_a_pre_gated_model() -> None:
    assert isinstance(make_gating("on_demand", inputs(level=1)), OnDemand)


EARLY = GatingInputs((8,) * 3, early=(0, 2))


def test_layers_that_choose_before_their_attention_are_not_guessed_and_the_others_are() -> None:
    gating = make_gating("pregated", EARLY)
    assert gating.exact
    assert gating.look_ahead(0, torch.randn(5, 8)) is None
    found = [play(gating, "a", [routing(layer, (layer, layer + 1)) for layer in range(3)]) for _ in range(4)]
    assert {p.layer for step in found for one in step for p in one} == {1}
    assert not any(p.exact for step in found for one in step for p in one)


def test_layers_that_choose_before_their_attention_count_as_selected_ahead() -> None:
    assert isinstance(make_gating("auto", EARLY), Pregated)
    with pytest.raises(ConfigError, match=r"'speculative' guesses .*choose 'pregated'"):
        make_gating("speculative", EARLY)
