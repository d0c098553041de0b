"""Decoder layers with fewer operations around attention and experts; see PlainBlock for why.

Of most families a layer is h + attention(norm(h)) and that plus experts(norm(that)): it is tried out. Shape
letters: T tokens, C width of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.cpu.kernels import kernels
from pgmoe.models.kv_argument import kv_argument
from pgmoe.models.mixed import mixed
from pgmoe.models.norm import add_and_normalise, is_kernel_norm
from pgmoe.models.plain_block import PlainBlock
from pgmoe.models.stand_in import StandIn, bits, is_hooked, standing_in, trial_tokens

_logger = logging.getLogger(__name__)
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ARGUMENTS = "position_embeddings", "attention_mask", "position_ids", "use_cache", "paged"
"""What a model gives its layers, beside the cache."""


class _PlainDecoderLayer(nn.Module):
    """Mixed into a family's decoder layer, whose own forward takes what comes otherwise."""

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, C) to (1, T, C). See the family's."""
        if args or self.training or torch.is_grad_enabled():
            return super().forward(hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        total, normal_TC = add_and_normalise(hidden_states, attended, self.post_attention_layernorm)
        del attended  # whose memory the experts may need
        if isinstance(self.mlp, PlainBlock) and not is_hooked(self.mlp):
            return _add_residual(total, self.mlp.routed(normal_TC))
        return total + self.mlp(normal_TC.view(total.shape))


def use_kernel(layer: nn.Module) -> None:
    """Have it take fewer operations, where a trial shows that this changes nothing; any other module stays.

    Its norms and its MoE block have to have been given theirs.
    """
    if isinstance(layer, _PlainDecoderLayer) or layer._modules.keys() != _PARTS:
        return
    norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
    if not all(map(is_kernel_norm, norms)):
        return
    kind: Any = type(layer)
    try:
        given = {name: name for name in (*_ARGUMENTS, kv_argument(layer))}
        before = _tried(layer, given)
        layer.__class__ = mixed("Plain", _PlainDecoderLayer, kind)
        if _tried(layer, given) != before:
            raise ValueError("it computes something else")
    except Exception as error:  # whatever it does: it is no plain layer
        layer.__class__ = kind
        _logger.debug("%s is no plain decoder layer: %r", kind.__name__, error)


@torch.inference_mode()
def _tried(layer: Any, given: Mapping[str, object]) -> list[Any]:
    """What its attention and its experts are called with, and what it makes of what they give."""
    attention = StandIn(layer.self_attn, lambda hidden: ((hidden * 7).sin(), None))
    experts = StandIn(layer.mlp, lambda hidden: (hidden * 3).cos())
    with standing_in(layer, {"self_attn": attention, "mlp": experts}):
        out = layer(trial_tokens(len(layer.input_layernorm.weight)), **given)
    return [attention.calls, experts.calls, bits(out)]


def _add_residual(total: Tensor, routed_TC: Tensor) -> Tensor:
    """Their sum, in place of `total` (1, T, C), where the kernel takes them."""
    width = total.shape[-1]
    suits = total.dtype is routed_TC.dtype is torch.bfloat16 and total.is_cpu and total.is_contiguous()
    if not (suits and routed_TC.is_contiguous()):
        return total + routed_TC.view(total.shape)
    place = total.data_ptr()
    kernels.add(place, routed_TC.data_ptr(), place, total.numel() // width, width, torch.get_num_threads())
    return total
