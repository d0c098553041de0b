"""Asking the next MoE block's router early: which experts it would choose of this block's expert input.

Shape letters: N tokens, D model width, K experts per token.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pgmoe.models.moe_blocks import router_of, stack_of
from pgmoe.models.socket import ExpertSocket

LookAhead = Callable[[Tensor], Tensor]
"""From one layer's expert input (N, D) to a later layer's likely experts (N, K) int64.

Ids at or above the number of experts stand for none. Only enqueues work; for inference mode.
"""

_NORMS = (  # where a layer has several, the first of these stands right before the experts
    "pre_expert_norm", "pre_feedforward_layernorm_2", "pre_feedforward_layernorm", "pre_mlp_layernorm",
    "pre_ff_layernorm", "ffn_norm", "ff_layer_norm", "layer_norm", "post_attention_layernorm", "norm",
    "input_layernorm",
)  # fmt: skip
_NUM_TRIALS = 16
_logger = logging.getLogger(__name__)


class _Unfit(Exception):
    """This router cannot be asked early, and why."""


def look_aheads(
    model: nn.Module, sockets: Sequence[ExpertSocket], distance: int = 1
) -> list[LookAhead | None]:
    """For each MoE layer, what guesses the experts of the one `distance` layers on; None where none is.

    Each router is tried once. One that cannot be asked early gives None, too, and a line in the log.
    """
    found: list[LookAhead | None] = []
    later = [*sockets[distance:], *[None] * distance][: len(sockets)]
    for here, following in zip(sockets, later, strict=True):
        if following is None or stack_of(here.name) != stack_of(following.name):
            found.append(None)
            continue
        try:
            found.append(_look_ahead(model, here, following))
        except _Unfit as reason:
            _logger.info("the experts of %s are not guessed ahead: %s", following.name, reason)
            found.append(None)
    return found


class _EarlyRouter:
    """A router behind its own norm, fed with what the norm of the layer before gave."""

    def __init__(self, router: nn.Module, rescale: Rescale | None) -> None:
        self._router = router
        self._rescale = rescale

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """See LookAhead. Raises _Unfit if the router gives no ids."""
        given = self._router(hidden_ND if self._rescale is None else self._rescale(hidden_ND))
        for part in given if isinstance(given, tuple) else ():
            if isinstance(part, Tensor) and part.dtype == torch.int64:
                return part.reshape(len(hidden_ND), -1)
        raise _Unfit(f"{type(self._router).__name__} gives no ids")


class Rescale:
    """From one norm's output to another's for the same input: (N, D) to (N, D).

    A norm gives s * x + b, with x the same for norms of one kind; so the other's is
    (s' / s) * y + b' - (s' / s) * b. Where s is 0, x is lost, and its mean 0 stands for it.
    """

    def __init__(self, before: nn.Module, after: nn.Module, like_D: Tensor, dtype: torch.dtype) -> None:
        s, b = _scale_and_shift(before, like_D)
        s_after, b_after = _scale_and_shift(after, like_D)
        ratio = torch.where(s.abs() > 1e-6 * s.abs().max(), s_after / s, 0.0)
        ratio = ratio.where(ratio.to(dtype).isfinite(), 0.0)
        self.ratio_D = ratio.to(dtype)
        self.shift_D = (b_after - ratio * b).to(dtype) if b.any() or b_after.any() else None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The other norm's output."""
        scaled = hidden_ND * self.ratio_D
        return scaled if self.shift_D is None else scaled + self.shift_D


def _scale_and_shift(norm: nn.Module, like_D: Tensor) -> tuple[Tensor, Tensor]:
    """A norm's s and b, found by what it makes of an input that is normal already."""
    x_1D = torch.ones_like(like_D)[None]
    x_1D[:, 1::2] = -1
    up, down = norm(x_1D)[0], norm(-x_1D)[0]
    return (up - down) / 2 * x_1D[0], (up + down) / 2


@torch.no_grad()
def _look_ahead(model: nn.Module, here: ExpertSocket, following: ExpertSocket) -> LookAhead:
    router = _router(model, following)
    if router.training:
        raise _Unfit("the router is in training mode")
    width = _width(here)
    if width != _width(following):
        raise _Unfit(f"this layer's input is {width} wide, that layer's {_width(following)}")
    weight = next(router.parameters())
    dtype = next(model.parameters()).dtype
    x_ND = torch.randn(_NUM_TRIALS, width, generator=torch.Generator().manual_seed(0))
    x_ND = x_ND.to(weight.device, dtype)
    try:
        asked = _EarlyRouter(router, rescale(model, here.block, following.block, x_ND))
        ids_NK = asked(x_ND)
    except Exception as error:  # whatever it is: without this router's guess, every answer is the same
        raise _Unfit(f"{type(error).__name__}: {error}") from error
    if ids_NK.shape != (_NUM_TRIALS, following.top_k):
        raise _Unfit(f"ids of shape {tuple(ids_NK.shape)} for {_NUM_TRIALS} tokens")
    return asked


def rescale(model: nn.Module, here: str, following: str, x_ND: Tensor) -> Rescale | None:
    """From the input of one MoE block, by its module path, to what another's norm makes of the same.

    `x_ND`: some inputs of the right width, device and type, to try it with. None where a layer has no norm
    before its experts, or the two norms differ in more than s and b.
    """
    before, after = _norm(model, here), _norm(model, following)
    if before is None or after is None:
        return None
    before, after = copy.deepcopy(before).float(), copy.deepcopy(after).float()
    x_ND, dtype = x_ND.float(), x_ND.dtype
    trial = Rescale(before, after, x_ND[0], torch.float32)
    expected = after(x_ND)
    error = (trial(before(x_ND)) - expected).abs()
    # By the median, as channels that the first norm makes 0 are lost whatever one does.
    if error.median() > 1e-3 * expected.abs().median():
        return None
    return Rescale(before, after, x_ND[0], dtype)


def _width(socket: ExpertSocket) -> int:
    return socket.shapes["down"][1 if socket.ffn.transposed else 0]


def _router(model: nn.Module, socket: ExpertSocket) -> nn.Module:
    block = model.get_submodule(socket.block)
    found = router_of(block)
    if found is None:
        raise _Unfit(f"{type(block).__name__} has no router of its own")
    return found[1]


def _norm(model: nn.Module, block: str) -> nn.Module | None:
    """The norm whose output the block gets, or None where the block takes the residual stream itself."""
    layer = model.get_submodule(block.rpartition(".")[0])
    for name in _NORMS:
        if isinstance(found := getattr(layer, name, None), nn.Module):
            # Where no norm precedes attention, the one named for following it normalises what it adds.
            follows = name == "post_attention_layernorm" and not hasattr(layer, "input_layernorm")
            return None if follows else found
    return None
