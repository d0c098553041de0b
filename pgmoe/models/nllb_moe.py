"""NLLB-MoE: a sparse block of our own, which calls its experts instead of owning them.

Its routing is that of transformers 4.57.6. The blocks of 5.17 to 5.23 pass every token to experts 0 and 1.
Shape letters: B batch, S sequence, N = B * S tokens, D model width, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import NllbMoeConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.nllb_moe.modeling_nllb_moe import (
    NllbMoeDecoder,
    NllbMoeSinusoidalPositionalEmbedding,
)
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP as TransformersSparseMLP

from pgmoe.errors import UnsupportedModel
from pgmoe.layout import ExpertFFN
from pgmoe.models.moe import RoutedExperts
from pgmoe.models.socket import ExpertSocket


class HasPositions(Protocol):
    """Who knows where the tokens of a pass stand."""

    @property
    def positions(self) -> Tensor:
        """(T,) of each token in its sequence, from 0."""
        ...


@dataclass(frozen=True)
class Top2Rules:
    """How many tokens an expert takes, which come first, and when the two weights are made to sum to one."""

    expert_capacity: int
    capacity_fraction: float
    """Capacity as a share of the tokens; `expert_capacity` counts where this is not positive."""
    strongest_first: bool
    """Whether tokens with the highest probability are served first, or those that come first."""
    normalise_first: bool
    """Whether weights are normalised before tokens are dropped, or over what is left of them."""

    def capacity(self, num_tokens: int) -> int:
        """Tokens that one expert takes of this many."""
        if self.capacity_fraction > 0:
            return math.ceil(self.capacity_fraction * num_tokens)
        return self.expert_capacity


def route_top2(
    logits_NE: Tensor, padding_N: Tensor | None, rules: Top2Rules, dtype: torch.dtype, *, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """The experts of each token (N, 2) and the weights of their outputs (N, 2, in `dtype`).

    Padding has no expert; all first choices are served before any second one, each while its expert has
    room. Where there is none, the expert is E, which stands for none, and the weight 0. Tokens that are
    `apart` have nothing to do with each other, as if each came alone.
    """
    num_tokens, num_experts = logits_NE.shape
    probabilities = logits_NE.softmax(-1).to(dtype)
    first = probabilities.argmax(-1)
    second = logits_NE.scatter(-1, first[:, None], -math.inf).argmax(-1)
    expert_N2 = torch.stack((first, second), -1)
    weight_N2 = probabilities.gather(-1, expert_N2)
    kept_N2 = torch.ones_like(expert_N2, dtype=torch.bool)
    if padding_N is not None:
        kept_N2 &= ~padding_N[:, None]
    if rules.normalise_first:
        weight_N2 = _sum_to_one(weight_N2)
    order = probabilities.amax(-1).neg().argsort() if rules.strongest_first else None
    if apart:  # two choices are two experts, so both are the first there
        kept_N2 &= rules.capacity(1) > 0
    else:
        kept_N2 &= _places(expert_N2, kept_N2, num_experts, order) < rules.capacity(num_tokens)
    weight_N2 = weight_N2 * kept_N2
    if not rules.normalise_first:
        weight_N2 = _sum_to_one(weight_N2)
    return expert_N2.masked_fill(weight_N2 == 0, num_experts), weight_N2


def _sum_to_one(weight_N2: Tensor) -> Tensor:
    smallest = torch.finfo(weight_N2.dtype).eps
    return weight_N2 / (weight_N2[:, :1] + weight_N2[:, 1:]).clamp(min=smallest)


def _places(expert_N2: Tensor, kept_N2: Tensor, num_experts: int, order: Tensor | None) -> Tensor:
    """Each choice's place in its expert's queue, from 0: first choices in `order`, then second ones."""
    chosen_N2E = functional.one_hot(expert_N2, num_experts) * kept_N2[..., None]
    queue_N2E = chosen_N2E if order is None else chosen_N2E[order]
    queue_N2E = queue_N2E.cumsum(0) - 1
    if order is not None:
        queue_N2E = queue_N2E[order.argsort()]
    queue_N2E[:, 1] += chosen_N2E[:, 0].sum(0)
    return queue_N2E.gather(-1, expert_N2[..., None])[..., 0]


class NllbMoeRouter(nn.Module):
    """Chooses two experts for each token, in the config's router type (float32 unless it says otherwise)."""

    apart = False
    """Whether the tokens of a pass have nothing to do with each other: see route_top2."""

    def __init__(self, config: NllbMoeConfig, classifier: nn.Linear) -> None:
        super().__init__()
        if config.second_expert_policy != "all":
            raise UnsupportedModel(
                f"second_expert_policy {config.second_expert_policy!r} picks experts at random, so answers "
                "could not be repeated; set it to 'all' in config.json"
            )
        self.rules = Top2Rules(
            expert_capacity=config.expert_capacity,
            capacity_fraction=config.moe_eval_capacity_token_fraction,
            strongest_first=config.batch_prioritized_routing,
            normalise_first=config.normalize_router_prob_before_dropping,
        )
        self.routes_padding = config.router_ignore_padding_tokens  # the option says the opposite of its name
        self.dtype: torch.dtype = getattr(torch, config.router_dtype)
        self.classifier = classifier

    def forward(self, hidden_ND: Tensor, mask_B1QK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See route_top2. The mask is additive, as attention takes it: 0 for tokens, negative for padding."""
        bias = self.classifier.bias
        logits_NE = functional.linear(
            hidden_ND.to(self.dtype),
            self.classifier.weight.to(self.dtype),
            None if bias is None else bias.to(self.dtype),
        )
        padding_N = None
        if mask_B1QK is not None and not self.routes_padding:
            # What the last query may not see is padding. While generating, Q is 1 and K all tokens so far:
            # then the newest B entries count, as in 4.57.6.
            padding_N = mask_B1QK[:, :, -1, :].reshape(-1)[-len(hidden_ND) :].bool()
        return route_top2(logits_NE, padding_N, self.rules, hidden_ND.dtype, apart=self.apart)


class NllbMoeSparseMLP(nn.Module):
    """In place of transformers' block of this name; `routed_experts` is plugged in later."""

    routed_experts: RoutedExperts

    def __init__(self, config: NllbMoeConfig, classifier: nn.Linear, ffn_dim: int) -> None:
        super().__init__()
        self.ffn_dim = ffn_dim
        self.router = NllbMoeRouter(config, classifier)

    def forward(self, hidden_BSD: Tensor, mask: object = None) -> Tensor:
        """(B, S, D) to (B, S, D); zero for padding and for tokens dropped by both experts.

        A mask that is no tensor knows of no padding.
        """
        hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        expert_N2, weight_N2 = self.router(hidden_ND, mask if isinstance(mask, Tensor) else None)
        return self.routed_experts(hidden_ND, expert_N2, weight_N2).view(hidden_BSD.shape)


class PositionsApart(nn.Module):
    """Around a decoder's embedding of positions: tokens that are `apart` each have one in their sequence."""

    apart = False

    def __init__(self, table: NllbMoeSinusoidalPositionalEmbedding, pages: HasPositions) -> None:
        super().__init__()
        self.table = table
        self._pages = pages

    def forward(self, input_ids_T1: Tensor, *others: object) -> Tensor:
        """(T, 1, D). Padding tokens have no position, as in the family's own."""
        if not self.apart:
            own: Tensor = self.table(input_ids_T1, *others)
            return own
        padding: int = self.table.padding_idx  # type: ignore[assignment]
        place_T1 = self._pages.positions[:, None] + padding + 1
        place_T1 = place_T1.masked_fill(input_ids_T1 == padding, padding)
        return self.table.weights[place_T1]


def set_apart(model: PreTrainedModel, pages: HasPositions) -> list[PositionsApart | NllbMoeRouter]:
    """What has to be told, by `apart`, that a decoder's tokens, one in each row, have nothing to do with each
    other; in other families nothing has. May be called again, with other pages.
    """
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    if not isinstance(decoder, NllbMoeDecoder):
        return []
    positions: Any = decoder.embed_positions
    table = positions.table if isinstance(positions, PositionsApart) else positions
    decoder.set_submodule("embed_positions", PositionsApart(table, pages))
    return [m for m in decoder.modules() if isinstance(m, PositionsApart | NllbMoeRouter)]


def empty_nllb_moe(model: PreTrainedModel) -> None:
    """Replace the sparse blocks; the routers' weights stay. Doing it again changes nothing.

    Raises UnsupportedModel for a model that routes at random.
    """
    config: Any = model.config
    for name, module in list(model.named_modules()):
        if isinstance(module, TransformersSparseMLP):
            expert: Any = module.experts["expert_0"]
            block = NllbMoeSparseMLP(config, module.router.classifier, expert.fc1.out_features)
            model.set_submodule(name, block)


def nllb_moe_sockets(model: PreTrainedModel) -> list[ExpertSocket]:
    """The sockets of all our sparse blocks, the encoder's first; none in a model of another family."""
    return [
        _socket(name, module, model.config)
        for name, module in model.named_modules()
        if isinstance(module, NllbMoeSparseMLP)
    ]


def _socket(name: str, block: NllbMoeSparseMLP, config: Any) -> ExpertSocket:
    expert = f"{name}.experts.expert_{{}}"
    return ExpertSocket(
        name=f"{name}.experts",
        module=block,
        num_experts=config.num_experts,
        top_k=2,
        shapes={
            "up": (block.ffn_dim, config.d_model),
            "up_bias": (block.ffn_dim,),
            "down": (config.d_model, block.ffn_dim),
            "down_bias": (config.d_model,),
        },
        keys={
            "up": f"{expert}.fc1.weight",
            "up_bias": f"{expert}.fc1.bias",
            "down": f"{expert}.fc2.weight",
            "down_bias": f"{expert}.fc2.bias",
        },
        # Training masks a share of the experts' outputs; serving scales all of them down instead.
        ffn=ExpertFFN(
            activation=ACT2FN[config.activation_function], output_scale=1 - config.moe_token_dropout
        ),
    )
