"""Experts whose stored bytes are not yet weights, expanded one matrix at a time just before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pgmoe.encodings import SCALE, Decoder, expanded_shape, make_decoder
from pgmoe.layout import ExpertLayer
from pgmoe.memory import page_aligned


def expanded_bytes(layers: Sequence[ExpertLayer]) -> int:
    """Bytes of the largest matrix that has to be expanded; 0 if all are stored as they are."""
    return max((_largest(layer) for layer in layers if layer.encoding != "plain"), default=0)


class Expander:
    """Memory for one expanded matrix, shared by all experts. For the computing thread alone."""

    def __init__(self, layers: Sequence[ExpertLayer], device: torch.device) -> None:
        """Takes `expanded_bytes(layers)` of device memory."""
        self._memory = page_aligned(expanded_bytes(layers), device=device)
        kinds = {(layer.encoding, layer.dtype) for layer in layers if layer.encoding != "plain"}
        self._decoders = {kind: make_decoder(*kind, device) for kind in kinds}

    def weights(self, layer: ExpertLayer, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """An expert's weights, given its tensors as stored.

        If they are encoded, asking for a matrix expands it into memory that the next one asked for takes
        again, of this expert or another.
        """
        if layer.encoding == "plain":
            return stored
        decoder = self._decoders[layer.encoding, layer.dtype]
        return _ExpandedWeights(layer, stored, decoder, self._memory)


class _ExpandedWeights(Mapping[str, Tensor]):
    def __init__(
        self, layer: ExpertLayer, stored: Mapping[str, Tensor], decoder: Decoder, memory: Tensor
    ) -> None:
        self._layer = layer
        self._stored = stored
        self._decoder = decoder
        self._memory = memory

    def __getitem__(self, name: str) -> Tensor:
        values, scales = self._stored[name], self._stored.get(name + SCALE)
        if scales is None:
            return values.to(self._layer.dtype)
        shape = expanded_shape(self._layer.encoding, tuple(values.shape))
        num_bytes = math.prod(shape) * self._layer.dtype.itemsize
        out_RC = self._memory[:num_bytes].view(self._layer.dtype).view(shape)
        self._decoder(values, scales, out_RC)
        return out_RC

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _largest(layer: ExpertLayer) -> int:
    names = {r.name for r in layer.layout.regions}
    encoded = [r for r in layer.layout.regions if r.name + SCALE in names]
    return max(math.prod(expanded_shape(layer.encoding, r.shape)) for r in encoded) * layer.dtype.itemsize
