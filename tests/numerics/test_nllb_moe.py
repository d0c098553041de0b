import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import NllbMoeForConditionalGeneration

from pgmoe.errors import UnsupportedModel
from pgmoe.models.nllb_moe import Top2Rules, empty_nllb_moe, nllb_moe_sockets, route_top2
from tests.support.checkpoints import tiny_config, tiny_model
from tests.support.golden import Golden, check
from tests.support.routed import plug_in_memory

GOLDEN = Golden.read("nllb_moe")


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_our_block_gives_the_outputs_of_the_reference_release(case: str) -> None:
    model = GOLDEN.rebuild(case, NllbMoeForConditionalGeneration, empty_nllb_moe, nllb_moe_sockets)
    check(GOLDEN, case, model)


def plain_top2(
    logits: Tensor, padding: list[bool], rules: Top2Rules
) -> tuple[list[list[int]], list[list[float]]]:
    """Token by token: all first choices, then all second ones, while the expert has room."""
    num_tokens, num_experts = logits.shape
    p = logits.softmax(-1).tolist()
    ranked = [sorted(range(num_experts), key=lambda e, row=row: -row[e])[:2] for row in p]
    order = (
        sorted(range(num_tokens), key=lambda t: -max(p[t])) if rules.strongest_first else range(num_tokens)
    )
    room = [rules.capacity(num_tokens)] * num_experts
    experts = [[num_experts, num_experts] for _ in range(num_tokens)]
    for choice in range(2):
        for token in order:
            wanted = ranked[token][choice]
            if not padding[token] and room[wanted] > 0:
                room[wanted] -= 1
                experts[token][choice] = wanted
    weights = []
    for token in range(num_tokens):
        raw = [p[token][e] for e in ranked[token]]
        kept = [w * (e < num_experts) for w, e in zip(raw, experts[token], strict=True)]
        total = sum(raw) if rules.normalise_first else sum(kept)
        weights.append([w / total if total else 0.0 for w in kept])
    return experts, weights


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.integers(1, 24),
    num_experts=st.integers(2, 9),
    rules=st.builds(
        Top2Rules,
        expert_capacity=st.integers(0, 8),
        capacity_fraction=st.sampled_from([-1.0, 0.1, 0.25, 0.5, 1.0]),
        strongest_first=st.booleans(),
        normalise_first=st.booleans(),
    ),
    padded=st.booleans(),
)
def test_first_choices_come_before_second_ones_and_full_experts_take_no_more(
    seed: int, num_tokens: int, num_experts: int, rules: Top2Rules, padded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    padding = torch.rand(num_tokens, generator=generator) < 0.3
    experts, weights = route_top2(logits, padding if padded else None, rules, torch.float32)
    expected = plain_top2(logits, padding.tolist() if padded else [False] * num_tokens, rules)
    assert experts.tolist() == expected[0]
    for got, wanted in zip(weights.tolist(), expected[1], strict=True):
        assert got == pytest.approx(wanted, abs=1e-6)


def test_tokens_spread_over_all_experts() -> None:
    model = tiny_model(tiny_config("nllb_moe"), torch.float32)
    weights = dict(model.state_dict())
    empty_nllb_moe(model)
    plugged = plug_in_memory(nllb_moe_sockets(model), weights)
    ids = torch.arange(3, 99)[None]
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids)
    assert all(len(experts.used) >= 6 for experts in plugged)


def test_padding_reaches_no_expert() -> None:
    config = tiny_config("nllb_moe")
    config.encoder_layers = 2
    model = tiny_model(config, torch.float32)
    weights = dict(model.state_dict())
    empty_nllb_moe(model)
    (experts, *_) = plug_in_memory(nllb_moe_sockets(model), weights)
    ids = torch.arange(3, 43)[None]
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1
    with torch.no_grad():
        model.get_encoder()(input_ids=ids, attention_mask=mask)
    assert len(experts.used) == 2


@pytest.mark.parametrize("policy", ["sampling", "random"])
def test_a_model_that_routes_at_random_is_refused(policy: str) -> None:
    config = tiny_config("nllb_moe")
    config.second_expert_policy = policy
    model = tiny_model(config, torch.float32)
    with pytest.raises(UnsupportedModel, match=policy):
        empty_nllb_moe(model)


def test_emptied_model_and_sockets_together_name_every_weight() -> None:
    model = tiny_model(tiny_config("nllb_moe"), torch.float32)
    names = set(model.state_dict())
    empty_nllb_moe(model)
    sockets = nllb_moe_sockets(model)
    of_experts = [k.format(e) for s in sockets for k in s.keys.values() for e in range(s.num_experts)]
    assert set(model.state_dict()).isdisjoint(of_experts)
    assert set(model.state_dict()) | set(of_experts) == names
    assert [s.name for s in sockets] == [
        "model.encoder.layers.1.ffn.experts",
        "model.encoder.layers.3.ffn.experts",
        "model.decoder.layers.1.ffn.experts",
        "model.decoder.layers.3.ffn.experts",
    ]
