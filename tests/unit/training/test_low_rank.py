from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgmoe.errors import UnsupportedModel
from pgmoe.training.low_rank import CHILD, GRANULE, MATRICES, attach, merge, sort_pairs
from tests.support.finetuning import trainable_model

IDS = torch.arange(60).view(2, 30) * 7 % 500
SCALE = 1.5


def with_deltas(family: str) -> PreTrainedModel:
    """Trained a little: B is not zero any more."""
    model = trainable_model(family).requires_grad_(False)
    attach(model, rank=3, scale=SCALE, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, factor in model.named_parameters():
        if f".{CHILD}." in name:
            factor.data = torch.randn(factor.shape, generator=generator) * 0.1
    return model


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The same function with plain weights, computed by transformers."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if factors := getattr(module, CHILD, None):
            for name in MATRICES:
                weight = getattr(module, name)
                a, b = getattr(factors, f"{name}_a"), getattr(factors, f"{name}_b")
                weight.data = merge(weight, a, b, SCALE)
            delattr(module, CHILD)
    plain.set_experts_implementation("eager")
    return plain


def test_merging_adds_the_scaled_product_in_the_type_of_the_weight() -> None:
    weight, a, b = torch.randn(2, 5, 4).bfloat16(), torch.randn(2, 3, 4), torch.randn(2, 5, 3)
    found = merge(weight, a, b, 0.5)
    assert found.dtype == torch.bfloat16
    for expert in range(2):
        expected = weight[expert].float() + 0.5 * (b[expert] @ a[expert])
        assert torch.equal(found[expert], expected.bfloat16())


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_the_unmerged_model_computes_what_the_merged_one_does(family: str) -> None:
    model = with_deltas(family)
    base = merged(trainable_model(family))
    with torch.no_grad():
        found, expected, before = (m(input_ids=IDS).logits for m in (model, merged(model), base))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2), "the deltas change nothing: nothing was tested"


def test_fresh_deltas_change_nothing() -> None:
    model = trainable_model("mixtral")
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        attach(model, rank=3, scale=SCALE, seed=0)
        assert torch.allclose(model(input_ids=IDS).logits, before, atol=1e-5)


def test_the_factors_get_the_gradients_that_the_merged_weights_would_give_them() -> None:
    model = with_deltas("mixtral")
    plain = merged(model).requires_grad_(True)
    for each in (model, plain):
        each(input_ids=IDS, labels=IDS).loss.backward()
    for layer, reference in zip(model.model.layers, plain.model.layers, strict=True):
        factors = getattr(layer.mlp.experts, CHILD)
        for name in MATRICES:
            a, b = getattr(factors, f"{name}_a"), getattr(factors, f"{name}_b")
            weight_grad: Tensor = getattr(reference.mlp.experts, name).grad
            assert torch.allclose(a.grad, SCALE * b.transpose(1, 2) @ weight_grad, atol=1e-5)
            assert torch.allclose(b.grad, SCALE * weight_grad @ a.transpose(1, 2), atol=1e-5)


def test_the_base_gets_no_gradient() -> None:
    model = with_deltas("mixtral")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert {f".{CHILD}." in name for name, p in model.named_parameters() if p.grad is not None} == {True}


def test_every_pair_has_a_place_among_those_of_its_expert() -> None:
    ids = torch.tensor([[5, 1], [1, 0], [5, 4]] * 20)
    pairs = sort_pairs(ids, num_experts=7)
    assert [count % GRANULE for count in pairs.counts] == [0] * 7
    assert [count > 0 for count in pairs.counts] == [True, True, False, False, True, True, False]
    expert = torch.repeat_interleave(torch.arange(7), torch.tensor(pairs.counts))
    assert torch.equal(expert[pairs.places], ids.flatten())
    assert torch.equal(pairs.tokens[pairs.places], torch.arange(len(ids)).repeat_interleave(2))
    assert len(set(pairs.places.tolist())) == ids.numel()


@pytest.mark.parametrize("family", ["gpt_oss", "switch_transformers"])
def test_experts_of_another_layout_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="fused experts without biases"):
        attach(trainable_model(family), rank=2, scale=1.0, seed=0)
