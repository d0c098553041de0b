from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pgmoe.experts.expander import Expander, expanded_bytes
from pgmoe.layout import ExpertLayer
from pgmoe.models.loader import read_plan
from pgmoe.selftest import read_plainly
from tests.conftest import QuantisedCheckpoints, TinyCheckpoints
from tests.support.expert_files import write_layers
from tests.support.quantised import KINDS

CPU = torch.device("cpu")


@pytest.fixture
def layers(quantised: QuantisedCheckpoints) -> tuple[ExpertLayer, ...]:
    return read_plan(str(quantised("mxfp4 gpt_oss"))).layers


def test_plain_weights_are_passed_on_as_they_are(tiny: TinyCheckpoints) -> None:
    layers = read_plan(str(tiny("mixtral"))).layers
    stored = read_plainly(layers[0], 3, CPU)
    assert Expander(layers, CPU).weights(layers[0], stored) is stored
    assert expanded_bytes(layers) == 0


def test_scales_are_no_weights_and_biases_come_in_the_computed_type(layers: tuple[ExpertLayer, ...]) -> None:
    layer = layers[0]
    stored = read_plainly(layer, 0, CPU)
    assert set(stored) == {"up", "up_scale", "up_bias", "down", "down_scale", "down_bias"}
    stored["up_bias"] = stored["up_bias"].float()
    weights = Expander(layers, CPU).weights(layer, stored)
    assert list(weights) == [name for name in stored if not name.endswith("scale")]
    assert len(weights) == 4
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["up_bias"].float(), stored["up_bias"])
    assert weights.get("gate") is None


def test_one_matrix_at_a_time_is_in_memory(layers: tuple[ExpertLayer, ...]) -> None:
    expander = Expander(layers, CPU)
    one, other = (expander.weights(layer, read_plainly(layer, 1, CPU)) for layer in layers[:2])
    up = one["up"].clone()
    place = one["up"].data_ptr()
    assert [w["down"].data_ptr() for w in (one, other)] == [place, place]
    assert torch.equal(one["up"], up)  # expanded anew each time
    assert not torch.equal(other["up"], up)
    assert expanded_bytes(layers) == up.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_weights_have_the_shapes_that_are_computed_with(
    quantised: QuantisedCheckpoints, kind: str
) -> None:
    plan = read_plan(str(quantised(kind)))
    expander = Expander(plan.layers, CPU)
    width = plan.config.hidden_size
    for layer in plan.layers:
        weights = expander.weights(layer, read_plainly(layer, 0, CPU))
        assert tuple(weights["up"].shape) == (layer.up_width, width)
        assert tuple(weights["down"].shape) == (width, layer.up_width // 2)
        assert layer.dtype == weights["up"].dtype == torch.bfloat16


def test_layers_of_either_kind_share_the_memory(
    quantised: QuantisedCheckpoints, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layers = (
        *read_plan(str(quantised("mxfp4 gpt_oss"))).layers,
        *read_plan(str(quantised("fp8 deepseek odd"))).layers,
        *write_layers(tmp_path_factory.mktemp("plain")),
    )
    expander = Expander(layers, CPU)
    for layer in layers:
        weights = expander.weights(layer, read_plainly(layer, 2, CPU))
        x_TD = torch.ones(2, weights["up"].shape[1], dtype=layer.dtype)
        assert functional.linear(x_TD, weights["up"]).isfinite().all()
