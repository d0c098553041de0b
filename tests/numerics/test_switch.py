import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import SwitchTransformersForConditionalGeneration

from pgmoe.models.switch import SwitchSparseMLP, empty_switch, route_top1, switch_sockets
from tests.support.checkpoints import tiny_config, tiny_model
from tests.support.golden import Golden, check
from tests.support.routed import InMemoryExperts, plug_in_memory

GOLDEN = Golden.read("switch_transformers")


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_our_block_gives_the_outputs_of_the_reference_release(case: str) -> None:
    model = GOLDEN.rebuild(case, SwitchTransformersForConditionalGeneration, empty_switch, switch_sockets)
    check(GOLDEN, case, model)


def plain_top1(logits: Tensor, capacity: int) -> tuple[list[int], list[float]]:
    """One sequence, token by token."""
    taken: dict[int, int] = {}
    experts, weights = [], []
    for row in logits:
        p = row.softmax(-1).tolist()
        best = p.index(max(p))
        taken[best] = taken.get(best, 0) + 1
        experts.append(best if taken[best] <= capacity else len(p))
        weights.append(p[best])
    return experts, weights


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 3),
    num_tokens=st.integers(1, 20),
    num_experts=st.integers(2, 9),
    capacity=st.integers(0, 8),
)
def test_each_sequence_fills_its_experts_in_order_and_the_rest_is_dropped(
    seed: int, num_rows: int, num_tokens: int, num_experts: int, capacity: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, num_tokens, num_experts, generator=generator)
    experts, weights = route_top1(logits, capacity, torch.float32)
    for row in range(num_rows):
        expected_experts, expected_weights = plain_top1(logits[row], capacity)
        assert experts[row].tolist() == expected_experts
        assert weights[row].tolist() == pytest.approx(expected_weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_adds_up_kept_tokens_and_leaves_dropped_ones_at_zero(dtype: torch.dtype) -> None:
    config = tiny_config("switch_transformers")  # capacity 3, 8 experts: 40 tokens overflow for sure
    model = tiny_model(config, dtype)
    weights = dict(model.state_dict())
    empty_switch(model)
    socket = switch_sockets(model)[0]
    (experts, *_) = plug_in_memory([socket], weights)
    block = socket.module
    assert isinstance(block, SwitchSparseMLP)
    hidden = torch.randn(2, 40, config.d_model, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        out = block(hidden)
        chosen, probability = block.router(hidden)
    kept = chosen < config.num_experts
    assert kept.any()
    assert not kept.all()
    assert not out[~kept].any()
    for row, position in kept.nonzero().tolist():
        e = int(chosen[row, position])
        up, down = experts.experts[e]["up"], experts.experts[e]["down"]
        y = (
            functional.linear(functional.linear(hidden[row, position], up).relu(), down)
            * probability[row, position]
        )
        torch.testing.assert_close(out[row, position], y)


def test_an_expert_that_no_kept_token_chose_is_never_asked_for() -> None:
    config = tiny_config("switch_transformers")
    config.expert_capacity = 0
    model = tiny_model(config, torch.float32)
    weights = dict(model.state_dict())
    empty_switch(model)
    plugged: list[InMemoryExperts] = plug_in_memory(switch_sockets(model), weights)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
    assert logits.isfinite().all()
    assert [experts.used for experts in plugged] == [set()] * 4


def test_emptied_model_and_sockets_together_name_every_weight() -> None:
    model = tiny_model(tiny_config("switch_transformers"), torch.float32)
    names = set(model.state_dict())
    empty_switch(model)
    sockets = switch_sockets(model)
    of_experts = [k.format(e) for s in sockets for k in s.keys.values() for e in range(s.num_experts)]
    assert set(model.state_dict()).isdisjoint(of_experts)
    assert set(model.state_dict()) | set(of_experts) == names
    assert [s.name for s in sockets] == [
        "encoder.block.1.layer.1.mlp.experts",
        "encoder.block.3.layer.1.mlp.experts",
        "decoder.block.1.layer.2.mlp.experts",
        "decoder.block.3.layer.2.mlp.experts",
    ]
