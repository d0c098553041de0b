"""Few tokens and their experts by the kernels: against torch, and to the bit against themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.cpu import few_tokens
from pgmoe.cpu.few_tokens import FewTokens, suits
from pgmoe.cpu.kernels import MOST_TOKENS, available
from pgmoe.experts.tokens import LoneToken, ManyTokens, tokens_of
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertLayer

needs_kernels = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")


def swiglu(up: Tensor) -> Tensor:
    gate, up = up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def layer_of(num_experts: int, width: int, inner: int, top_k: int, **ffn: object) -> ExpertLayer:
    layout = BlobLayout.pack({"up": (2 * inner, width), "down": (width, inner)}, torch.bfloat16)
    made = ExpertFFN(**{"activation": swiglu, "swiglu": True, **ffn})  # type: ignore[arg-type]
    return ExpertLayer("experts", layout, made, ((),) * num_experts, top_k)


@pytest.fixture
def case() -> SimpleNamespace:
    """Random experts and tokens; some choices stand for no expert."""
    num_experts, top_k = random.randint(2, 20), random.randint(1, 5)
    width, inner = 32 * random.randint(1, 8), 32 * random.randint(1, 8)
    num_tokens = random.choice([1, 2, 15, 16, 17, 40, MOST_TOKENS])
    layer = layer_of(num_experts, width, inner, top_k)
    weights = [
        {
            "up": (torch.randn(2 * inner, width) / width**0.5).to(torch.bfloat16),
            "down": (torch.randn(width, inner) / inner**0.5).to(torch.bfloat16),
        }
        for _ in range(num_experts)
    ]
    ids = torch.stack([torch.randperm(num_experts + top_k)[:top_k] for _ in range(num_tokens)])
    x = torch.randn(num_tokens, width).to(torch.bfloat16)
    share = torch.rand(num_tokens, top_k)
    return SimpleNamespace(layer=layer, weights=weights, ids=ids, x=x, share=share)


def computed(case: SimpleNamespace, batches: Iterator[list[int]] | None = None, **other: Tensor) -> Tensor:
    given = SimpleNamespace(**{**vars(case), **other})
    tokens = FewTokens(given.layer, given.x, given.ids)
    for batch in [tokens.experts] if batches is None else batches:
        tokens.apply({expert: given.weights[expert] for expert in batch})
    return tokens.weighted_sum(given.share)


@needs_kernels
@pytest.mark.parametrize("turn", range(20))
def test_equals_the_formula(case: SimpleNamespace, turn: int) -> None:
    expected = torch.zeros(case.x.shape, dtype=torch.float64)
    for n, ids in enumerate(case.ids.tolist()):
        for k, expert in enumerate(ids):
            if expert < len(case.weights):
                up, down = (case.weights[expert][name].double() for name in ("up", "down"))
                y = down @ swiglu(up @ case.x[n].double())
                expected[n] += case.share[n, k].double() * y
    torch.testing.assert_close(computed(case).double(), expected, rtol=0.02, atol=0.03)


@needs_kernels
@pytest.mark.parametrize("turn", range(10))
def test_is_nearly_what_torch_computes(case: SimpleNamespace, turn: int) -> None:
    many = ManyTokens(case.layer, case.x, case.ids)
    for expert in many.experts:
        many.apply({expert: case.weights[expert]})
    torch.testing.assert_close(computed(case), many.weighted_sum(case.share), rtol=2**-6, atol=2**-6)


@needs_kernels
@pytest.mark.parametrize("turn", range(10))
def test_the_order_in_which_experts_come_changes_nothing(case: SimpleNamespace, turn: int) -> None:
    together = computed(case)
    experts = FewTokens(case.layer, case.x, case.ids).experts
    random.shuffle(experts)
    batches = []
    while experts:
        size = random.randint(1, len(experts))
        batches.append(experts[:size])
        del experts[:size]
    assert torch.equal(computed(case, iter(batches)), together)


@needs_kernels
@pytest.mark.parametrize("turn", range(5))
def test_a_token_gets_the_same_whatever_runs_beside_it(case: SimpleNamespace, turn: int) -> None:
    together = computed(case)
    for n in range(len(case.x)):
        alone = computed(case, x=case.x[n : n + 1], ids=case.ids[n : n + 1], share=case.share[n : n + 1])
        assert torch.equal(alone[0], together[n])


@needs_kernels
@pytest.mark.parametrize("turn", range(10))
def test_adds_up_as_torch_does_to_the_bit(case: SimpleNamespace, turn: int) -> None:
    """Outputs of single experts, told by tokens of one choice, weighted and added in ascending order."""
    expected = torch.zeros_like(case.x)
    for n, ids in enumerate(case.ids.tolist()):
        for expert, k in sorted((e, k) for k, e in enumerate(ids) if e < len(case.weights)):
            only = torch.tensor([[expert]])
            y = computed(case, x=case.x[n : n + 1], ids=only, share=torch.ones(1, 1))
            expected[n] += (y[0] * case.share[n, k : k + 1]).to(torch.bfloat16)
    assert torch.equal(computed(case), expected)


@needs_kernels
def test_a_token_without_an_expert_gets_zeros(case: SimpleNamespace) -> None:
    none = torch.full_like(case.ids, len(case.weights))
    assert not computed(case, ids=none).any()


@needs_kernels
@pytest.mark.parametrize("gate", [-torch.inf, -1e38, -100.0, -20.0, 0.0, 20.0, 100.0, 1e38])
def test_the_gate_is_right_at_its_ends(gate: float) -> None:
    """One input and weights that pass it on: the gate's value meets an up of 1."""
    layer = layer_of(1, 32, 32, 1)
    up = torch.zeros(64, 32, dtype=torch.bfloat16)
    up[0, 0], up[32, 1] = 1, 1
    down = torch.zeros(32, 32, dtype=torch.bfloat16)
    down[3, 0] = 1
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0], x[0, 1] = gate if abs(gate) < torch.inf else torch.finfo(torch.bfloat16).min, 1
    tokens = FewTokens(layer, x, torch.zeros(1, 1, dtype=torch.int64))
    tokens.apply({0: {"up": up, "down": down}})
    found = tokens.weighted_sum(torch.ones(1, 1))[0, 3]
    torch.testing.assert_close(found, functional.silu(x[0, 0]), rtol=2**-7, atol=1e-7)


def test_layers_that_the_kernels_do_not_compute_are_told_apart() -> None:
    layer = layer_of(4, 64, 32, 2)
    assert suits(layer)
    assert not suits(layer_of(4, 64, 48, 2))
    assert not suits(layer_of(4, 64, 32, 2, swiglu=False))
    assert not suits(replace(layer, encoding="fp8_block", expanded=torch.bfloat16))
    biased = {"up": (64, 64), "down": (64, 32), "up_bias": (64,), "down_bias": (64,)}
    assert not suits(replace(layer, layout=BlobLayout.pack(biased, torch.bfloat16)))
    assert not suits(
        replace(layer, layout=BlobLayout.pack({"up": (64, 64), "down": (64, 32)}, torch.float16))
    )


def test_without_kernels_torch_computes(monkeypatch: pytest.MonkeyPatch, case: SimpleNamespace) -> None:
    monkeypatch.setattr(few_tokens, "available", lambda: False)
    tokens = tokens_of(case.layer, case.x, case.ids, case.ids)
    assert isinstance(tokens, LoneToken if len(case.x) == 1 else ManyTokens)
