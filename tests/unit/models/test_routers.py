from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgmoe.models.loader import load_model, read_plan
from pgmoe.models.routers import LookAhead, look_aheads
from pgmoe.models.socket import ExpertSocket
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import EARLY_ROUTED_FAMILIES, ENCODER_DECODER_FAMILIES, FAMILIES
from tests.support.runs import Prompts

NORM = {"switch_transformers": "layer_norm", "nllb_moe": "ff_layer_norm"}
"""The norm before the experts; elsewhere `post_attention_layernorm`."""


class Halver:
    """In place of experts: moves every token a little, and keeps what it was given."""

    def __init__(self, ahead: LookAhead | None = None) -> None:
        self.ahead = ahead
        self.guesses: list[Tensor] = []

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if self.ahead is not None:
            self.guesses.append(self.ahead(hidden))
        return hidden.roll(1, -1) / 2


@dataclass
class Tiny:
    """A loaded model of one family, its norms' weights redrawn so that mixing two up shows."""

    family: str
    model: nn.Module
    sockets: tuple[ExpertSocket, ...]

    @classmethod
    def load(cls, family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Tiny:
        loaded = load_model(read_plan(str(folder)), dtype=dtype, device=torch.device("cpu"))
        model = loaded.model
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.2)
        return cls(family, model, loaded.sockets)

    def block(self, layer: int) -> nn.Module:
        return self.model.get_submodule(self.sockets[layer].name.rpartition(".")[0])

    def norm(self, layer: int) -> nn.Module:
        owner = self.sockets[layer].name.rpartition(".")[0].rpartition(".")[0]
        found = getattr(self.model.get_submodule(owner), NORM.get(self.family, "post_attention_layernorm"))
        assert isinstance(found, nn.Module)
        return found

    def choice(self, layer: int, residual: Tensor) -> Tensor:
        """What the layer's own router makes of this residual stream."""
        block = self.block(layer)
        router = getattr(block, "router", None) or block.gate
        x_ND = self.norm(layer)(residual).reshape(-1, residual.shape[-1])
        if self.family == "nllb_moe":
            return router(x_ND, None)[0]
        given = router(x_ND)
        return given[0] if self.family == "switch_transformers" else given[2]

    @torch.inference_mode()
    def run(self, plugged: list[Halver]) -> Tensor:
        for socket, experts in zip(self.sockets, plugged, strict=True):
            socket.module.routed_experts = experts  # type: ignore[assignment]
        ids = torch.tensor([Prompts.random(3).one])
        extra = {"decoder_input_ids": ids[:, 2:8]} if self.family in ENCODER_DECODER_FAMILIES else {}
        logits = self.model(input_ids=ids, **extra).logits
        assert isinstance(logits, Tensor)
        return logits


@pytest.fixture(scope="module", params=[f for f in FAMILIES if f not in EARLY_ROUTED_FAMILIES])
def any_tiny(request: pytest.FixtureRequest, tiny: TinyCheckpoints) -> Tiny:
    return Tiny.load(request.param, tiny(request.param))


@pytest.fixture
def mixtral(tiny: TinyCheckpoints) -> Tiny:
    return Tiny.load("mixtral", tiny("mixtral"))


def by_token(ids: Tensor) -> list[set[int]]:
    return [set(row) for row in ids.reshape(len(ids), -1).tolist()]


def residual(num_tokens: int, width: int) -> Tensor:
    """Always the same: of other tokens' experts two may be all but equally good."""
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(0))


def test_the_next_router_is_asked_as_if_its_block_got_this_residual(any_tiny: Tiny) -> None:
    ahead = look_aheads(any_tiny.model, any_tiny.sockets)
    residuals: dict[int, Tensor] = {}
    plugged = [Halver(one) for one in ahead]
    with ExitStack() as hooks:
        for layer in range(len(ahead)):

            def keep(_: nn.Module, given: tuple[Tensor, ...], layer: int = layer) -> None:
                residuals[layer] = given[0]

            hooks.enter_context(any_tiny.norm(layer).register_forward_pre_hook(keep))
        any_tiny.run(plugged)
    guessed = [layer for layer, one in enumerate(ahead) if one is not None]
    last = {len(ahead) - 1} | ({1} if any_tiny.family in ENCODER_DECODER_FAMILIES else set())
    assert set(guessed) == set(range(len(ahead))) - last
    for layer in guessed:
        (found,) = plugged[layer].guesses
        assert found.dtype == torch.int64
        with torch.inference_mode():
            assert by_token(found) == by_token(any_tiny.choice(layer + 1, residuals[layer]))


def test_looking_ahead_changes_no_bit_of_the_answer(any_tiny: Tiny) -> None:
    ahead = look_aheads(any_tiny.model, any_tiny.sockets)
    assert torch.equal(any_tiny.run([Halver(one) for one in ahead]), any_tiny.run([Halver() for _ in ahead]))


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "nllb_moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_mostly_agrees(tiny: TinyCheckpoints, family: str, dtype: torch.dtype) -> None:
    low = Tiny.load(family, tiny(family, dtype), dtype)
    (ahead, *_) = look_aheads(low.model, low.sockets)
    assert ahead is not None
    x_ND = residual(64, 32 if family == "nllb_moe" else 64).to(dtype)
    with torch.inference_mode():
        found, expected = by_token(ahead(low.norm(0)(x_ND))), by_token(low.choice(1, x_ND))
    assert sum(len(f & e) for f, e in zip(found, expected, strict=True)) > 0.9 * sum(map(len, expected))


def test_channels_that_a_norm_makes_zero_leave_the_others_right(tiny: TinyCheckpoints) -> None:
    phimoe = Tiny.load("phimoe", tiny("phimoe"))
    with torch.no_grad():
        phimoe.norm(0).weight[::4] = 0
        phimoe.norm(1).weight[::4] = 0
    ahead = look_aheads(phimoe.model, phimoe.sockets)[0]
    assert ahead is not None
    x_ND = residual(20, 64)
    with torch.inference_mode():
        assert by_token(ahead(phimoe.norm(0)(x_ND))) == by_token(phimoe.choice(1, x_ND))


def test_a_layer_without_a_norm_before_its_experts_hands_its_input_on(mixtral: Tiny) -> None:
    for layer in mixtral.model.get_submodule("model.layers"):
        del layer.input_layernorm  # as FlexOlmo, whose post_attention_layernorm belongs to attention
    ahead = look_aheads(mixtral.model, mixtral.sockets)[0]
    assert ahead is not None
    x_ND = residual(20, 64)
    with torch.inference_mode():
        assert by_token(ahead(x_ND)) == by_token(mixtral.block(1).gate(x_ND)[2])


def test_norms_of_two_kinds_are_not_exchanged_for_each_other(mixtral: Tiny) -> None:
    mixtral.model.get_submodule("model.layers.1").post_attention_layernorm = nn.LayerNorm(64)
    ahead = look_aheads(mixtral.model, mixtral.sockets)[0]
    assert ahead is not None
    x_ND = residual(20, 64)
    with torch.inference_mode():
        assert by_token(ahead(x_ND)) == by_token(mixtral.block(1).gate(x_ND)[2])


class WantsMore(nn.Linear):
    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        return hidden + bias


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        (WantsMore(64, 8).eval(), "TypeError"),
        (nn.Linear(64, 8).eval(), "Linear gives no ids"),
        (nn.Linear(32, 8).eval(), "RuntimeError"),
        (nn.Linear(64, 8), "training mode"),
    ],
)
def test_a_router_that_cannot_be_asked_is_left_out_and_named(
    mixtral: Tiny, router: nn.Module, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    mixtral.block(1).gate = router
    with caplog.at_level(logging.INFO):
        ahead = look_aheads(mixtral.model, mixtral.sockets)
    assert [one is None for one in ahead] == [True, False, True]
    (record,) = caplog.records
    assert "model.layers.1.mlp.experts" in record.getMessage()
    assert reason in record.getMessage()


def test_a_router_that_chooses_another_number_of_experts_than_its_layer_uses_is_left_out(
    mixtral: Tiny,
) -> None:
    mixtral.block(2).gate.top_k = 3
    assert [one is None for one in look_aheads(mixtral.model, mixtral.sockets)] == [False, True, True]


def test_a_model_of_one_sparse_layer_has_nothing_to_look_ahead_to(mixtral: Tiny) -> None:
    assert look_aheads(mixtral.model, mixtral.sockets[:1]) == [None]
