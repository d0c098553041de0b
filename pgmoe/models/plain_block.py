"""MoE blocks that are a router and its experts, and nothing else, with fewer operations between the two.

After experts have gone by, the first of every kind of operation takes some 30 us: what it runs is no longer
in a core's cache. So what a single token costs beside the kernels is how many kinds there are. Shape letters:
T tokens, K experts of each, C width of the model.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.models.mixed import mixed
from pgmoe.models.moe_blocks import router_of
from pgmoe.models.stand_in import StandIn, bits, is_hooked, standing_in, trial_tokens

_logger = logging.getLogger(__name__)


class PlainBlock(nn.Module):
    """Mixed into a family's block."""

    router_name: str
    experts: Any

    def forward(self, hidden_states: Tensor) -> Any:
        """(..., C) to (..., C). See the family's."""
        if self.training or torch.is_grad_enabled():
            return super().forward(hidden_states)
        return self.routed(hidden_states.view(-1, hidden_states.shape[-1])).view(hidden_states.shape)

    def routed(self, hidden_TC: Tensor) -> Tensor:
        """(T, C) to (T, C), for a model that only answers."""
        _, weights_TK, ids_TK = getattr(self, self.router_name)(hidden_TC)
        experts = self.experts if is_hooked(self.experts) else self.experts.routed_experts
        out: Tensor = experts(hidden_TC, ids_TK, weights_TK)
        return out


def use_kernel(block: nn.Module) -> None:
    """Have a block take fewer operations, where a trial shows that this changes nothing; any other stays."""
    found = router_of(block)
    if isinstance(block, PlainBlock) or found is None or block._modules.keys() != {found[0], "experts"}:
        return
    kind: Any = type(block)
    try:
        before = _tried(block, found[0])
        block.router_name = found[0]  # type: ignore[assignment]
        block.__class__ = mixed("Plain", PlainBlock, kind)
        if _tried(block, found[0]) != before:
            raise ValueError("it computes something else")
    except Exception as error:  # whatever it does: it is no plain block
        block.__class__ = kind
        block.__dict__.pop("router_name", None)
        _logger.debug("%s is no plain block: %r", kind.__name__, error)


@torch.inference_mode()
def _tried(block: Any, router_name: str) -> list[Any]:
    """What its router and its experts are called with, and what it makes of what they give."""
    width = getattr(block, router_name).weight.shape[1]
    router = StandIn(getattr(block, router_name), _routing)
    experts = StandIn(block.experts, lambda hidden_TC: (hidden_TC * 3).cos())
    experts.routed_experts = experts.forward  # type: ignore[assignment]
    with standing_in(block, {router_name: router, "experts": experts}):
        out = block(trial_tokens(width))
    return [router.calls, experts.calls, bits(out)]


def _routing(hidden_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, weights and ids."""
    logits_TE = hidden_TC[:, :8].float()
    return logits_TE, *torch.topk(logits_TE.sin(), 2)
