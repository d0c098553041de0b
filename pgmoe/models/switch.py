"""Switch Transformers: a sparse block of our own, which calls its experts instead of owning them.

Its routing is that of transformers 4.57.6 and 5.23; some versions between lack the expert capacity.
Shape letters: B batch, S sequence, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)
from transformers.activations import ACT2FN
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from pgmoe.layout import ExpertFFN
from pgmoe.models.moe import RoutedExperts
from pgmoe.models.socket import ExpertSocket

_STACKS = ("encoder", "decoder")


def route_top1(logits_BSE: Tensor, capacity: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The expert of each token (B, S) and the weight of its output (B, S, in `dtype`).

    In each sequence, tokens beyond the first `capacity` of an expert are dropped: their expert is E, which
    stands for none. Probabilities are rounded to `dtype` before they are compared, so near ties count as
    ties; the lower expert wins. (Switch Transformers, Fedus et al. 2021, section 2.2.)
    """
    probabilities = logits_BSE.softmax(-1).to(dtype)
    weight_BS, expert_BS = probabilities.max(-1)
    num_experts = logits_BSE.shape[-1]
    queue_BSE = functional.one_hot(expert_BS, num_experts).cumsum(-2)
    place_BS = queue_BSE.gather(-1, expert_BS[..., None])[..., 0]
    return expert_BS.masked_fill(place_BS > capacity, num_experts), weight_BS


class SwitchRouter(nn.Module):
    """Chooses one expert for each token, in the config's router type (float32 unless it says otherwise)."""

    def __init__(self, config: SwitchTransformersConfig, classifier: nn.Linear) -> None:
        super().__init__()
        self.capacity = config.expert_capacity
        self.dtype: torch.dtype = getattr(torch, config.router_dtype)
        self.classifier = classifier

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """See route_top1."""
        bias = self.classifier.bias
        logits_BSE = functional.linear(
            hidden_BSD.to(self.dtype),
            self.classifier.weight.to(self.dtype),
            None if bias is None else bias.to(self.dtype),
        )
        return route_top1(logits_BSE, self.capacity, hidden_BSD.dtype)


class SwitchSparseMLP(nn.Module):
    """In place of transformers' SwitchTransformersSparseMLP; `routed_experts` is plugged in later."""

    routed_experts: RoutedExperts

    def __init__(self, config: SwitchTransformersConfig, classifier: nn.Linear) -> None:
        super().__init__()
        self.router = SwitchRouter(config, classifier)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D); zero for dropped tokens, which pass by the residual alone."""
        expert_BS, weight_BS = self.router(hidden_BSD)
        width = hidden_BSD.shape[-1]
        out = self.routed_experts(
            hidden_BSD.reshape(-1, width), expert_BS.reshape(-1, 1), weight_BS.reshape(-1, 1)
        )
        return out.view(hidden_BSD.shape)


def empty_switch(model: PreTrainedModel) -> None:
    """Replace the sparse blocks; the routers' weights stay. Doing it again changes nothing."""
    config: Any = model.config
    for name, module in list(model.named_modules()):
        if isinstance(module, SwitchTransformersSparseMLP):
            model.set_submodule(name, SwitchSparseMLP(config, module.router.classifier))
    _share_table(model)


def switch_sockets(model: PreTrainedModel) -> list[ExpertSocket]:
    """The sockets of all our sparse blocks, the encoder's first; none in a model of another family."""
    return [
        _socket(name, module, model.config)
        for name, module in model.named_modules()
        if isinstance(module, SwitchSparseMLP)
    ]


def _socket(name: str, block: SwitchSparseMLP, config: Any) -> ExpertSocket:
    expert = f"{name}.experts.expert_{{}}"
    return ExpertSocket(
        name=f"{name}.experts",
        module=block,
        num_experts=config.num_experts,
        top_k=1,
        shapes={"up": (config.d_ff, config.d_model), "down": (config.d_model, config.d_ff)},
        keys={"up": f"{expert}.wi.weight", "down": f"{expert}.wo.weight"},
        ffn=ExpertFFN(activation=ACT2FN[config.dense_act_fn]),
    )


def note_tables(config: PretrainedConfig, keys: Container[str]) -> None:
    """Note in a Switch Transformer's config which stacks have a table of their own among these tensors.

    Where `tie_word_embeddings` is false, transformers 5 trains and writes one for each stack. That option is
    about the output layer, though: T5's convention is one table, `shared`, for encoder and decoder.
    """
    if isinstance(config, SwitchTransformersConfig):
        config.stacks_with_table = [stack for stack in _STACKS if f"{stack}.embed_tokens.weight" in keys]


def tie_stacks(model: PreTrainedModel) -> None:
    """Have stacks without a table use `shared`, as parameters of a model that has been loaded."""
    for stack in _stacks_without_table(model):
        stack.set_input_embeddings(model.shared)


def _share_table(model: PreTrainedModel) -> None:
    """The same before the model is loaded: nothing is missing then, and nothing is drawn at random."""
    for stack in _stacks_without_table(model):
        stack._modules.pop("embed_tokens", None)
        stack.__dict__["embed_tokens"] = model.shared  # not a submodule: no state-dict key of its own


def _stacks_without_table(model: PreTrainedModel) -> list[Any]:
    """Those of an untied Switch Transformer, whose tables transformers leaves at random values."""
    config: Any = model.config
    if not isinstance(model, SwitchTransformersForConditionalGeneration) or config.tie_word_embeddings:
        return []
    own = getattr(config, "stacks_with_table", ())
    return [model.get_submodule(stack) for stack in _STACKS if stack not in own]
