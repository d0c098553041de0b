"""One expert as bytes: which tensors, where in its blob, and where they lie in the checkpoint's files.

The plain data that loader, stores and compute share. Shape letters: E experts, D model width, I expert width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

TENSOR_ALIGN = 64  # bytes; a cache line, and a multiple of every dtype's size


class ExpertId(NamedTuple):
    """Which expert: MoE layer index (in execution order) and index within the layer."""

    layer: int
    expert: int


@dataclass(frozen=True)
class TensorSlice:
    """One tensor of an expert inside its blob."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the blob."""


@dataclass(frozen=True)
class BlobLayout:
    """Fixed order of an expert's tensors in its blob; the same for all experts of a layer."""

    tensors: tuple[TensorSlice, ...]
    dtype: torch.dtype
    nbytes: int

    @classmethod
    def pack(cls, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> BlobLayout:
        """Lay tensors of these shapes one after another, each on a TENSOR_ALIGN boundary."""
        offset, tensors = 0, []
        for name, shape in shapes.items():
            tensors.append(TensorSlice(name, shape, offset))
            size = torch.Size(shape).numel() * dtype.itemsize
            offset += -(-size // TENSOR_ALIGN) * TENSOR_ALIGN
        return cls(tuple(tensors), dtype, offset)

    def views(self, blob: torch.Tensor) -> dict[str, torch.Tensor]:
        """The blob's tensors as views; `blob` is uint8 and at least `nbytes` long."""
        found = {}
        for t in self.tensors:
            size = torch.Size(t.shape).numel() * self.dtype.itemsize
            found[t.name] = blob[t.offset : t.offset + size].view(self.dtype).view(t.shape)
        return found


@dataclass(frozen=True)
class Extent:
    """A byte range of a file and its place in the blob."""

    path: str
    offset: int
    nbytes: int
    blob_offset: int


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one MoE layer: their layout and where each one's bytes lie."""

    name: str
    """Module path in the model, e.g. `model.layers.3.mlp.experts`."""
    layout: BlobLayout
    extents: tuple[tuple[Extent, ...], ...]
    """For each expert, the ranges that fill its blob."""
    top_k: int
    """Experts that one token uses."""

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.extents)
