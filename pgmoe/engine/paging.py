"""Whether a model's attention can read from pages, and what it keeps of a token: found by asking it.

It is run on the meta device, on a cache that has pages and nothing else. So no family is listed anywhere.
"""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.pool import LayerShape
from pgmoe.models.attention import NotPaged
from pgmoe.models.paged import PagedModel, depends_on_length, num_layers

_logger = logging.getLogger(__name__)
_META = torch.device("meta")
_NUM_TOKENS = 3


def layer_shapes(model: PreTrainedModel) -> tuple[LayerShape, ...] | None:
    """What each layer of a meta model keeps of a token; None where its attention cannot be paged.

    Its experts have to be plugged in.
    """
    probe = _Probe()
    try:
        if depends_on_length(model.config):
            raise NotPaged("its rotary positions depend on the length of what runs together")
        _run(PagedModel(model, probe))
        return probe.found(num_layers(model.config), context=bool(model.config.is_encoder_decoder))
    except Exception as error:  # whatever it misses: a cache of its own has it
        _logger.debug("%s keeps a cache for each sequence: %r", type(model).__name__, error)
        return None


@torch.inference_mode()
def _run(model: PagedModel) -> None:
    token_ids = torch.zeros(_NUM_TOKENS, dtype=torch.int64, device=_META)
    new = [model.encode([0] * _NUM_TOKENS)] if model.is_encoder_decoder else []
    model.run(token_ids, token_ids[:1], new)


class _Probe:
    """AttentionPages that keep nothing but shapes."""

    def __init__(self) -> None:
        self.positions = torch.arange(_NUM_TOKENS, device=_META)
        self._shapes: dict[int, LayerShape] = {}
        self._attended: Counter[int] = Counter()
        self._contexts: dict[int, LayerShape] = {}
        self._looked: Counter[int] = Counter()

    def write(self, layer: int, keys_THD: Tensor, values_THV: Tensor) -> None:
        self._shapes[layer] = _shape(keys_THD, values_THV)

    def room(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("nothing is kept, and the kernels that ask are for CPUs")

    def write_context(self, layer: int, keys_LHD: Tensor, values_LHV: Tensor) -> None:
        self._contexts[layer] = _shape(keys_LHD, values_LHV)

    def attend(self, layer: int, queries_TQD: Tensor, rule: AttentionRule) -> Tensor:
        shape = self._shapes[layer]
        self._attended[layer] += 1
        width = shape.value_width
        if rule.expand is not None:
            kept = (
                torch.empty(1, shape.num_heads, 1, width, device=_META, dtype=shape.dtype)
                for width in (shape.key_width, shape.value_width)
            )
            width = rule.expand(*kept)[1].shape[-1]
        return queries_TQD.new_empty(*queries_TQD.shape[:2], width)

    def attend_context(self, layer: int, queries_TQD: Tensor, scale: float) -> Tensor:
        self._looked[layer] += 1
        return queries_TQD.new_empty(*queries_TQD.shape[:2], self._contexts[layer].value_width)

    def found(self, num_layers: int, *, context: bool) -> tuple[LayerShape, ...]:
        """Raises NotPaged unless each layer has written and attended once, and like its context's."""
        once = Counter(range(num_layers))
        if set(self._shapes) != set(once) or self._attended != once:
            raise NotPaged(f"{dict(self._attended)} of {num_layers} layers attended")
        if context and (self._contexts != self._shapes or self._looked != once):
            raise NotPaged("its layers keep something else of a prompt than of a token")
        return tuple(self._shapes[layer] for layer in range(num_layers))


def _shape(keys_THD: Tensor, values_THV: Tensor) -> LayerShape:
    return LayerShape(keys_THD.shape[1], keys_THD.shape[2], values_THV.shape[2], keys_THD.dtype)
