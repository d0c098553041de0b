"""Self-attention over pages whose queries, keys and values one kernel of our own makes (`cpu/project.h`).

What lies between the products (views, norms, rotary embedding, copies to the pages) takes torch longer than
they do, where there are few tokens. Shape letters: T tokens, Q query heads, D width of a head, C of the
model.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.attention_rule import AttentionRule
from pgmoe.cpu import products
from pgmoe.cpu.kernels import BLOCK, address, kernels
from pgmoe.models.attention import MaskRule, PagedCache
from pgmoe.models.attention_trial import tell
from pgmoe.models.kv_argument import kv_argument
from pgmoe.models.linear import KernelLinear
from pgmoe.models.mixed import mixed
from pgmoe.models.norm import is_kernel_norm
from pgmoe.models.stand_in import is_hooked

_logger = logging.getLogger(__name__)
_ARGUMENTS = {
    "self", "hidden_states", "position_embeddings", "attention_mask", "cache", "past_key_values", "kwargs",
}  # fmt: skip
"""What a forward may take. By positions it might do otherwise in places where nobody tries."""


class _KernelSelfAttention(nn.Module):
    """Mixed into a family's attention, whose own forward does what the kernel cannot."""

    projections: Projections

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of hidden_states (1, T, C), with cos and sin (1, T, D) as position_embeddings. See the family's."""
        if args or not self.projections.take(**kwargs):
            return super().forward(*args, **kwargs)
        return self.projections.attend(**kwargs), None


class _Part:
    """One product, and what follows it. Its layer keeps these parameters as long as it answers."""

    def __init__(self, layer: Any, norm: Any, *, rotates: bool) -> None:
        self._weight, self._bias = layer.weight, layer.bias
        self._norm = None if norm is None else norm.weight
        self.num_outputs = layer.weight.shape[0]
        self._of_norm = (0, 0.0) if norm is None else (len(norm.weight), norm.variance_epsilon)
        self._rotates = rotates

    def into(self, out: Tensor, rows_T: Tensor | None) -> tuple[Any, ...]:
        """As the kernel takes it, with the rows of `out` that it goes to, if these are not the first ones."""
        places = self._weight.data_ptr(), address(self._bias), out.data_ptr(), address(rows_T)
        return *places, self.num_outputs, address(self._norm), *self._of_norm, self._rotates


class Projections:
    """What one layer makes of its tokens, and how it attends."""

    def __init__(self, layer: Any, scale: float, sinks: str | None) -> None:
        """`sinks`: the parameter's name, if it has sinks."""
        self.layer, self.scale, self.sinks = layer, scale, sinks
        self.width, self.index, self.output = layer.head_dim, layer.layer_idx, layer.o_proj
        self.first: Tensor = layer.q_proj.weight
        self.parts = (
            _Part(layer.q_proj, getattr(layer, "q_norm", None), rotates=True),
            _Part(layer.k_proj, getattr(layer, "k_norm", None), rotates=True),
            _Part(layer.v_proj, None, rotates=False),
        )

    def take(
        self,
        hidden_states: Tensor,
        position_embeddings: object = None,
        attention_mask: object = None,
        paged: PagedCache | None = None,
        **_: object,
    ) -> bool:
        """Whether a call is one for the kernel."""
        return (
            paged is not None
            and isinstance(attention_mask, MaskRule)
            and isinstance(position_embeddings, tuple)
            and not torch.is_grad_enabled()
            and hidden_states.shape[0] == 1
            and products.takes(hidden_states, self.first)
            and all(self._turns(part, hidden_states) for part in position_embeddings)
        )

    def attend(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: MaskRule,
        paged: PagedCache,
        **_: object,
    ) -> Tensor:
        """(1, T, C)."""
        num_tokens, num_inputs = hidden_states.shape[1:]
        queries, keys, values = self.parts
        keys_PHD, values_PHV, rows_T = paged.pages.room(self.index)
        queries_TQD = hidden_states.new_empty(num_tokens, queries.num_outputs // self.width, self.width)
        scratch = hidden_states.new_empty(products.packed_rows(num_tokens, BLOCK) * num_inputs)
        cos_1TD, sin_1TD = position_embeddings
        kernels.project(
            hidden_states.data_ptr(),
            cos_1TD.data_ptr(),
            sin_1TD.data_ptr(),
            scratch.data_ptr(),
            num_tokens,
            num_inputs,
            self.width,
            torch.get_num_threads(),
            (queries.into(queries_TQD, None), values.into(values_PHV, rows_T), keys.into(keys_PHD, rows_T)),
        )
        sinks = None if self.sinks is None else getattr(self.layer, self.sinks)
        rule = AttentionRule(attention_mask, self.scale, sinks)
        return self._output_projection(paged.pages.attend(self.index, queries_TQD, rule))

    def _output_projection(self, attended_TQV: Tensor) -> Tensor:
        """(1, T, C), of all heads."""
        layer, num_tokens = self.output, attended_TQV.shape[0]
        suits = attended_TQV.dtype is torch.bfloat16 and attended_TQV.is_contiguous()
        if not suits or is_hooked(layer):
            given: Tensor = layer(attended_TQV.reshape(1, num_tokens, -1))
            return given
        out = attended_TQV.new_empty(1, num_tokens, len(layer.weight))
        products.multiply(attended_TQV, layer.weight, out, layer.bias)
        return out

    def _turns(self, part: Tensor, hidden_1TC: Tensor) -> bool:
        """Whether these are cosines or sines that the kernel takes."""
        shape = 1, hidden_1TC.shape[1], self.width
        return part.shape == shape and part.dtype is torch.bfloat16 and part.is_contiguous()


def use_kernel(layer: nn.Module) -> None:
    """Have it take the kernel, where a trial shows that this changes nothing; any other module stays.

    Its linear layers and norms have to have been given their kernels. All but the last one are not called any
    more.
    """
    if isinstance(layer, _KernelSelfAttention) or not _has_parts(layer):
        return
    kind: Any = type(layer)
    try:
        _swap(layer, kind)
    except Exception as error:  # whatever it takes: it is no plain self-attention
        layer.__class__ = kind
        layer.__dict__.pop("projections", None)
        _logger.debug("%s is no plain self-attention: %r", kind.__name__, error)


def _has_parts(layer: Any) -> bool:
    """Whether all that it consists of is known, and it is called with nothing else."""
    linear: list[Any] = [getattr(layer, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(layer, name, None)) is not None]
    return (
        all(isinstance(part, KernelLinear) and part.weight.dtype is torch.bfloat16 for part in linear)
        and all(is_kernel_norm(norm) for norm in norms)
        and not any(map(is_hooked, (*linear, *norms)))
        and isinstance(width := getattr(layer, "head_dim", None), int)
        and width % BLOCK == 0
        and not any(len(part.weight) % width for part in linear[:3])
        and products.takes(linear[3].weight[:1], linear[3].weight, linear[3].bias)
        and _ARGUMENTS.issuperset(inspect.signature(type(layer).forward).parameters)
    )


def _swap(layer: Any, kind: Any) -> None:
    """To the class with the kernel. Raises where this changes something, or what its forward raises."""
    heads = len(layer.k_proj.weight) // layer.head_dim
    shape = heads, layer.head_dim, len(layer.v_proj.weight) // heads
    argument = kv_argument(layer)
    before = tell(layer, argument, *shape)
    rule = before.rule
    if rule.bias is not None or rule.expand is not None:
        raise ValueError("it attends by a rule of its own")
    sinks = [name for name, parameter in layer.named_parameters() if parameter is rule.sinks]
    if rule.sinks is not None and not sinks:
        raise ValueError("its sinks are made anew")
    layer.projections = Projections(layer, rule.scale, sinks[0] if sinks else None)
    layer.__class__ = mixed("Kernel", _KernelSelfAttention, kind)
    after = tell(layer, argument, *shape)
    if not after.by_room or not after.same(before):
        raise ValueError("the kernel gives something else")
