from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.experts.stores.disk import DiskStore
from pgmoe.gating.pregated import Pregated
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertLayer, Extent
from pgmoe.selftest import read_plainly
from tests.support.expert_files import PoolParts, write_layers
from tests.support.routed import InMemoryExperts

NUM_EXPERTS, WIDTH, TOP_K = 6, 33, 3


@pytest.fixture
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PoolParts]:
    dtype, num_slots = request.param
    layers = write_layers(tmp_path, num_layers=1, num_experts=NUM_EXPERTS, dtype=dtype)
    parts = PoolParts(layers, DiskStore(layers), num_slots)
    yield parts
    parts.pool.close()


few_slots = pytest.mark.parametrize(
    "parts", [(torch.float32, 2), (torch.bfloat16, 2), (torch.bfloat16, 6)], indirect=True, ids=str
)


def inputs(num_tokens: int, dtype: torch.dtype, router: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, distinct experts for each (some of them the one that stands for none), weights."""
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator).to(dtype)
    scores = torch.rand(num_tokens, NUM_EXPERTS + 1, generator=generator)
    weights, index = scores.topk(TOP_K)
    return hidden, index, weights.to(router)


@few_slots
@pytest.mark.parametrize("num_tokens", [1, 2, 9])
@pytest.mark.parametrize("router", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_slots_give_what_experts_in_memory_give(
    parts: PoolParts, router: torch.dtype, num_tokens: int
) -> None:
    (layer,) = parts.layers
    weights = [read_plainly(layer, expert, torch.device("cpu")) for expert in range(NUM_EXPERTS)]
    batch = inputs(num_tokens, layer.dtype, router)
    found = parts.experts(0)(*batch)
    expected = InMemoryExperts(weights, layer.ffn)(*batch)
    assert found.dtype == layer.dtype
    tolerance = 1e-5 if layer.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@few_slots
def test_a_lone_token_is_rounded_as_the_formula_says(parts: PoolParts) -> None:
    """Each expert's output times its weight, rounded to the hidden type, added in ascending order."""
    layer = parts.layers[0]
    experts = parts.experts(0)
    for seed in range(1, 9):
        hidden, index, weights = (t[:1] for t in inputs(seed, layer.dtype, torch.float32))
        found = experts(hidden, index, weights)
        expected = torch.zeros_like(hidden)
        for expert in sorted(set(index[0].tolist()) - {NUM_EXPERTS}):
            alone = experts(hidden, torch.tensor([[expert]]), torch.ones(1, 1))  # one expert, weight 1
            weight = weights[0, index[0].tolist().index(expert)]
            expected += (alone * weight.view(1, 1)).to(layer.dtype)
        assert torch.equal(found, expected)


def test_a_lone_tokens_bits_do_not_depend_on_which_experts_were_resident(tmp_path: Path) -> None:
    """float32 silu rounds the last elements of a range differently; 37 of them end in such a tail."""
    layout = BlobLayout.pack({"up": (37, WIDTH), "down": (WIDTH, 37)}, torch.float32)
    path, generator = tmp_path / "experts", torch.Generator().manual_seed(0)
    weights = torch.randn(NUM_EXPERTS, 2, 37 * WIDTH, generator=generator)
    path.write_bytes(weights.numpy().tobytes())
    size = weights[0, 0].nbytes
    extents = tuple(
        tuple(Extent(str(path), (2 * e + i) * size, size, name, 0) for i, name in enumerate(("up", "down")))
        for e in range(NUM_EXPERTS)
    )
    layer = ExpertLayer("experts", layout, ExpertFFN(functional.silu), extents, top_k=4)
    index = torch.tensor([[4, 1, 5, 0]])
    for _ in range(30):
        hidden = torch.randn(1, WIDTH, generator=generator)
        parts = PoolParts((layer,), DiskStore((layer,)), num_slots=NUM_EXPERTS)
        experts = parts.experts(0)
        parts.take(0, [0, 4])
        some_resident, all_resident = (experts(hidden, index, torch.ones(1, 4)) for _ in range(2))
        assert (parts.stats.num_hits, parts.stats.num_misses) == (2 + 4, 2 + 2)
        assert torch.equal(some_resident, all_resident)
        parts.pool.close()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was copied to the host, which waits for the device each time."""
    copied: list[Tensor] = []
    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: (copied.append(tensor), to_host(tensor))[1])
    return copied


EARLY = Pregated((), 0, (NUM_EXPERTS,), early=(0,))


@few_slots
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_what_was_announced_is_copied_to_the_host_once(
    parts: PoolParts, num_tokens: int, copies: list[Tensor]
) -> None:
    batch = inputs(num_tokens, parts.layers[0].dtype, torch.float32)
    expected = parts.experts(0)(*batch)
    del copies[:]
    experts = parts.experts(0, EARLY)
    experts.announce(batch[1])
    assert [ids is batch[1] for ids in copies] == [True]
    assert torch.equal(experts(*batch), expected)
    assert len(copies) == 1


@few_slots
def test_ids_that_are_not_those_announced_are_used_as_they_come(
    parts: PoolParts, copies: list[Tensor]
) -> None:
    """A pass that broke off after its router had chosen leaves an announcement behind."""
    dtype = parts.layers[0].dtype
    old, batch = inputs(3, dtype, torch.float32), inputs(4, dtype, torch.float32)
    expected = parts.experts(0)(*batch)
    experts = parts.experts(0, EARLY)
    experts.announce(old[1])
    del copies[:]
    assert torch.equal(experts(*batch), expected)
    assert torch.equal(experts(*batch), expected)
    assert len(copies) == 2


@few_slots
def test_an_announcement_that_nobody_wants_does_not_wait_for_the_device(
    parts: PoolParts, copies: list[Tensor]
) -> None:
    parts.experts(0).announce(torch.tensor([[0, 1, 2]]))
    assert not copies
    assert parts.stats.num_misses == 0


@few_slots
def test_tokens_without_experts_come_out_as_zeros(parts: PoolParts) -> None:
    experts = parts.experts(0)
    for num_tokens in (1, 4):
        hidden = torch.randn(num_tokens, WIDTH).to(parts.layers[0].dtype)
        index = torch.full((num_tokens, 2), NUM_EXPERTS)
        out = experts(hidden, index, torch.ones(num_tokens, 2))
        assert torch.equal(out, torch.zeros_like(hidden))
    assert parts.stats.num_misses == 0
