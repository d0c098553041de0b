"""One expert as bytes: which tensors, where in its slot, and where they lie in the checkpoint's files.

The plain data that loader, stores and compute share. Shape letters: D model width, I expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from pgmoe.encodings import Encoding

PAGE = 4096
"""Bytes. File offsets, lengths and addresses of O_DIRECT reads are multiples of it; so are slot sizes."""

LINE = 64
"""Bytes of a cache line: tensors of a tight layout start at multiples of it."""


def round_up(num_bytes: int, step: int = PAGE) -> int:
    """The smallest multiple of `step` that is at least `num_bytes`."""
    return -(-num_bytes // step) * step


class ExpertId(NamedTuple):
    """Which expert: MoE layer index (in execution order) and index within the layer."""

    layer: int
    expert: int


@dataclass(frozen=True)
class Extent:
    """A byte range of a file and the place it goes to: bytes into the tensor of this name."""

    path: str
    offset: int
    nbytes: int
    tensor: str
    tensor_offset: int


@dataclass(frozen=True)
class Blob:
    """All tensors of one expert as one page-aligned range of a file, laid out there as in a slot."""

    path: str
    offset: int
    nbytes: int
    """Slot bytes of the layout."""
    crc32: int


@dataclass(frozen=True)
class TensorRegion:
    """One tensor of an expert and the region kept for it in a slot; `BlobLayout` says how they lie."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes from the start of the slot to the start of the region."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class BlobLayout:
    """Fixed order of an expert's tensors in a slot; the same for all experts of a layer.

    Regions are page-aligned and a page longer than their tensors: a tensor starts up to a page late in its
    region, so that it can lie at the same distance from a page boundary as in its file and be read there
    directly. In a tight layout, that of packs, tensors lie one after another at multiples of LINE.
    """

    regions: tuple[TensorRegion, ...]
    tight: bool = False

    @classmethod
    def pack(
        cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | Mapping[str, torch.dtype]
    ) -> BlobLayout:
        """Lay regions for tensors of these shapes one after another; `dtype` is theirs, or each one's."""
        regions: list[TensorRegion] = []
        offset = 0
        for name, shape in shapes.items():
            own = dtype if isinstance(dtype, torch.dtype) else dtype[name]
            regions.append(TensorRegion(name, shape, own, offset))
            offset += round_up(regions[-1].nbytes) + PAGE
        return cls(tuple(regions))

    def tightened(self) -> BlobLayout:
        """The same tensors in a tight layout."""
        regions: list[TensorRegion] = []
        offset = 0
        for region in self.regions:
            regions.append(replace(region, offset=offset))
            offset = round_up(offset + region.nbytes, LINE)
        return BlobLayout(tuple(regions), tight=True)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(r.nbytes for r in self.regions)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot that holds one expert, a multiple of PAGE."""
        last = self.regions[-1]
        return round_up(last.offset + last.nbytes) + (0 if self.tight else PAGE)

    def starts(self, extents: Sequence[Extent]) -> dict[str, int]:
        """Where in a slot each tensor starts: as far from a page boundary as in its file, unless tight.

        A file may have it anywhere; in a slot it starts at a multiple of its elements' size.
        """
        if self.tight:
            return {r.name: r.offset for r in self.regions}
        phase = {e.tensor: e.offset % PAGE for e in extents if e.tensor_offset == 0}
        return {r.name: r.offset + phase[r.name] // r.dtype.itemsize * r.dtype.itemsize for r in self.regions}

    def views(self, slot: torch.Tensor, starts: dict[str, int]) -> dict[str, torch.Tensor]:
        """The expert's tensors as views of `slot` (uint8, at least `slot_bytes` long)."""
        found = {}
        for r in self.regions:
            start = starts[r.name]
            found[r.name] = slot[start : start + r.nbytes].view(r.dtype).view(r.shape)
        return found


@dataclass(frozen=True)
class ExpertFFN:
    """How an expert turns x (T, D) into its output (T, D), given its tensors.

    up: (2I, D) or (I, D); down: (D, I); both the other way round where `transposed`. Tensors `up_bias` and
    `down_bias` are added where the layout has them. y = output_scale * post_norm(down @ activation(up @ x)).
    """

    activation: Callable[[torch.Tensor], torch.Tensor]
    """(T, 2I or I) -> (T, I); does the gating where there is any."""
    swiglu: bool = False
    """Whether activation(u) is silu(first half of u) * second half, each rounded to u's type."""
    transposed: bool = False
    output_scale: float = 1.0
    post_norm: Callable[[torch.Tensor], torch.Tensor] | None = None

    def finish(self, down: torch.Tensor) -> torch.Tensor:
        """From the second projection's output (T, D) to y (T, D)."""
        y = down if self.post_norm is None else self.post_norm(down)
        return y if self.output_scale == 1.0 else y * self.output_scale


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one MoE layer: how they are laid out, computed, and where their bytes lie."""

    name: str
    """Module path in the model, e.g. `model.layers.3.mlp.experts`."""
    layout: BlobLayout
    ffn: ExpertFFN
    extents: tuple[tuple[Extent, ...], ...]
    """For each expert, the ranges that fill its tensors."""
    top_k: int
    """Experts that one token uses."""
    encoding: Encoding = "plain"
    """How the stored bytes stand for weights: as they are (`plain`), or to be expanded before computing."""
    expanded: torch.dtype | None = None
    """The type to expand them to, if they are not plain."""
    blobs: tuple[Blob, ...] = ()
    """Each expert's, where the files are a pack's; in other files its tensors lie apart."""

    @property
    def num_experts(self) -> int:
        """Experts in this layer."""
        return len(self.extents)

    @cached_property
    def up_width(self) -> int:
        """Outputs of an expert's first projection: 2I or I."""
        (up,) = (r.shape for r in self.layout.regions if r.name == "up")
        return up[1 if self.ffn.transposed else 0]

    @cached_property
    def swiglu_widths(self) -> tuple[int, int] | None:
        """(D, I) where its experts are bfloat16 as they are stored, and SwiGLU and nothing else."""
        shapes = {region.name: region.shape for region in self.layout.regions}
        plain = (
            self.encoding == "plain"
            and self.dtype is torch.bfloat16
            and self.ffn.swiglu
            and not self.ffn.transposed
            and self.ffn.post_norm is None
            and self.ffn.output_scale == 1.0
            and shapes.keys() == {"up", "down"}
        )
        return (shapes["down"][0], shapes["down"][1]) if plain else None

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the experts are computed: that of their weights, expanded where they are encoded."""
        return self.expanded or self.layout.regions[0].dtype
