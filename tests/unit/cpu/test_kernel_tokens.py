"""Tokens and their experts by the kernels: against torch, and to the bit against themselves."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.cpu import kernel_tokens, products
from pgmoe.cpu.kernel_tokens import KernelTokens, most_rows, suits
from pgmoe.cpu.kernels import MOST_CHOICES, available, kernels, reason
from pgmoe.experts.tokens import LoneToken, ManyTokens, tokens_of
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertLayer
from tests.support.fresh import fresh_seed

needs_kernels = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")


def swiglu(up: Tensor) -> Tensor:
    gate, up = up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def layer_of(num_experts: int, width: int, inner: int, top_k: int, **ffn: object) -> ExpertLayer:
    layout = BlobLayout.pack({"up": (2 * inner, width), "down": (width, inner)}, torch.bfloat16)
    made = ExpertFFN(**{"activation": swiglu, "swiglu": True, **ffn})  # type: ignore[arg-type]
    return ExpertLayer("experts", layout, made, ((),) * num_experts, top_k)


@pytest.fixture(params=[1, 2, 3], ids=["1 thread", "2 threads", "3 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def case() -> SimpleNamespace:
    """Random experts and tokens; some choices stand for no expert."""
    seed = fresh_seed()
    random.seed(seed)
    torch.manual_seed(seed)
    num_experts, top_k = random.randint(2, 20), random.randint(1, 5)
    width, inner = 32 * random.randint(1, 8), 32 * random.randint(1, 8)
    num_tokens = random.choice([1, 2, 15, 16, 17, 40, 64, 300])
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
    share = torch.rand(num_tokens, top_k).to(random.choice([torch.float32, torch.bfloat16]))
    return SimpleNamespace(layer=layer, weights=weights, ids=ids, x=x, share=share)


def computed(case: SimpleNamespace, batches: Iterator[list[int]] | None = None, **other: Tensor) -> Tensor:
    given = SimpleNamespace(**{**vars(case), **other})
    tokens = KernelTokens(given.layer, given.x, given.ids)
    for batch in [tokens.experts] if batches is None else batches:
        tokens.apply({expert: given.weights[expert] for expert in batch})
    return tokens.weighted_sum(given.share)


@needs_kernels
@pytest.mark.parametrize("turn", range(7))
def test_equals_the_formula(case: SimpleNamespace, turn: int, threads: int) -> None:
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
def test_is_nearly_what_torch_computes(
    case: SimpleNamespace, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "available", lambda: False)
    many = ManyTokens(case.layer, case.x, case.ids)
    for expert in many.experts:
        many.apply({expert: case.weights[expert]})
    torch.testing.assert_close(computed(case), many.weighted_sum(case.share), rtol=2**-6, atol=2**-6)


@needs_kernels
@pytest.mark.parametrize("turn", range(10))
def test_the_order_in_which_experts_come_changes_nothing(
    case: SimpleNamespace, turn: int, threads: int
) -> None:
    torch.set_num_threads(1)
    together = computed(case)
    torch.set_num_threads(threads)
    experts = KernelTokens(case.layer, case.x, case.ids).experts
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
    for n in range(0, len(case.x), 1 + len(case.x) // 20):
        alone = computed(case, x=case.x[n : n + 1], ids=case.ids[n : n + 1], share=case.share[n : n + 1])
        assert torch.equal(alone[0], together[n])


@needs_kernels
@pytest.mark.parametrize("turn", range(10))
def test_adds_up_as_torch_does_to_the_bit(case: SimpleNamespace, turn: int) -> None:
    """Outputs of single experts, told by tokens of one choice, weighted and added in ascending order."""
    expected = torch.zeros_like(case.x)
    for n, ids in enumerate(case.ids[:40].tolist()):
        for expert, k in sorted((e, k) for k, e in enumerate(ids) if e < len(case.weights)):
            only = torch.tensor([[expert]])
            y = computed(case, x=case.x[n : n + 1], ids=only, share=torch.ones(1, 1))
            expected[n] += (y[0] * case.share[n, k : k + 1]).to(torch.bfloat16)
    assert torch.equal(computed(case)[:40], expected[:40])


@needs_kernels
def test_a_token_without_an_expert_gets_zeros(case: SimpleNamespace) -> None:
    none = torch.full_like(case.ids, len(case.weights))
    assert not computed(case, ids=none).any()


def test_choices_of_no_expert_take_no_memory(case: SimpleNamespace) -> None:
    ids = torch.full((2000, 4), len(case.weights))
    tokens = KernelTokens(case.layer, case.x[:1].expand(2000, -1), ids)
    assert tokens._most_rows == most_rows(case.layer, 2000, 4)


@needs_kernels
@pytest.mark.parametrize("gate", [-3e38, -1e38, -100.0, -20.0, 0.0, 20.0, 100.0, 1e38])
def test_the_gate_is_right_at_its_ends(gate: float) -> None:
    """One input and weights that pass it on: the gate's value meets an up of 1."""
    layer = layer_of(1, 32, 32, 1)
    up = torch.zeros(64, 32, dtype=torch.bfloat16)
    up[0, 0], up[32, 1] = 1, 1
    down = torch.zeros(32, 32, dtype=torch.bfloat16)
    down[3, 0] = 1
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0], x[0, 1] = gate, 1
    tokens = KernelTokens(layer, x, torch.zeros(1, 1, dtype=torch.int64))
    tokens.apply({0: {"up": up, "down": down}})
    found = tokens.weighted_sum(torch.ones(1, 1))[0, 3]
    torch.testing.assert_close(found, functional.silu(x[0, 0]), rtol=2**-7, atol=1e-7)


def test_layers_that_the_kernels_do_not_compute_are_told_apart() -> None:
    layer = layer_of(4, 64, 32, 2)
    assert suits(layer, 64)
    assert not suits(layer, 96)
    assert not suits(layer_of(4, 64, 48, 2), 64)
    assert not suits(layer_of(4, 64, 32, 2, swiglu=False), 64)
    assert not suits(layer_of(4, 64, 32, 2, transposed=True), 64)
    assert not suits(layer_of(4, 64, 32, 2, output_scale=2.0), 64)
    assert not suits(layer_of(4, 64, 32, 2, post_norm=torch.nn.Identity()), 64)
    assert not suits(replace(layer, encoding="fp8_block", expanded=torch.bfloat16), 64)
    biased = {"up": (64, 64), "down": (64, 32), "up_bias": (64,), "down_bias": (64,)}
    assert not suits(replace(layer, layout=BlobLayout.pack(biased, torch.bfloat16)), 64)
    half = BlobLayout.pack({"up": (64, 64), "down": (64, 32)}, torch.float16)
    assert not suits(replace(layer, layout=half), 64)


def test_without_kernels_torch_computes(monkeypatch: pytest.MonkeyPatch, case: SimpleNamespace) -> None:
    expected = computed(case) if available() else None
    for module in (kernel_tokens, products):
        monkeypatch.setattr(module, "available", lambda: False)
    tokens = tokens_of(case.layer, case.x, case.ids, case.ids)
    assert isinstance(tokens, LoneToken if len(case.x) == 1 else ManyTokens)
    tokens.apply({expert: case.weights[expert] for expert in tokens.experts})
    found = tokens.weighted_sum(case.share)
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)


@needs_kernels
@pytest.mark.parametrize("turn", range(5))
def test_nothing_else_is_written_to(case: SimpleNamespace, turn: int) -> None:
    """Each choice its own expert, and as many of them as there may be: then memory is fullest."""
    num_experts = MOST_CHOICES if turn else 3
    case.layer = layer_of(num_experts, case.x.shape[1], case.layer.up_width // 2, num_experts)
    case.weights = [random.choice(case.weights) for _ in range(num_experts)]
    num_tokens = len(case.x)
    ids = torch.stack([torch.randperm(num_experts) for _ in range(num_tokens)])
    tokens = KernelTokens(case.layer, case.x, ids)
    guarded = []
    for name in ("_scratch", "_y_CD"):
        memory = getattr(tokens, name)
        around = torch.full((memory.numel() + 128,), 7, dtype=memory.dtype)
        setattr(tokens, name, around[64:-64].view(memory.shape))
        guarded.append(around)
    tokens.apply({expert: case.weights[expert] for expert in tokens.experts})
    assert tokens.weighted_sum(torch.ones(num_tokens, num_experts)).isfinite().all()
    for around in guarded:
        assert (around[:64] == 7).all()
        assert (around[-64:] == 7).all()


@needs_kernels
def test_an_expert_chosen_twice_by_a_token_counts_twice(case: SimpleNamespace) -> None:
    """Families choose distinct ones, but some take choices from a checkpoint's table."""
    ids = torch.zeros(len(case.x), MOST_CHOICES, dtype=torch.int64)
    one = computed(case, ids=ids[:, :1], share=torch.ones(len(case.x), 1))
    share = torch.zeros(len(case.x), MOST_CHOICES)
    share[:, 0] = share[:, -1] = 0.5
    assert torch.equal(computed(case, ids=ids, share=share), (one * 0.5) + (one * 0.5))


@needs_kernels
def test_too_little_memory_is_refused(case: SimpleNamespace) -> None:
    tokens = KernelTokens(case.layer, case.x, torch.zeros_like(case.ids))
    tokens._scratch = tokens._scratch[:1]
    with pytest.raises(ValueError, match="scratch is too small"):
        tokens.apply({0: case.weights[0]})


def test_kernels_are_there_where_they_can_be() -> None:
    """Else all tests of theirs would be passed over unseen."""
    flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    if "amx_bf16" in flags and shutil.which("gcc"):
        version = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout
        assert reason() is None or int(version.split(".")[0]) < 12


def test_choices_are_counted() -> None:
    num_experts = int(torch.randint(1, 300, ()))
    ids = torch.randint(0, num_experts + 3, (int(torch.randint(1, 500, ())), 3))
    expected = Counter(e for e in ids.flatten().tolist() if e < num_experts)
    counts = kernels.count(ids.data_ptr(), ids.numel(), num_experts)
    assert counts == expected
    assert [*counts] == sorted(expected)
    assert kernels.count(0, 0, 0) == {}
    ids[-1, 1] = -1
    with pytest.raises(ValueError, match="expert -1"):
        kernels.count(ids.data_ptr(), ids.numel(), num_experts)
