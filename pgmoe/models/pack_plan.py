"""Where each expert's bytes lie in a pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers.core_model_loading import dot_natural_key

from pgmoe.encodings import SCALE
from pgmoe.errors import CorruptCheckpoint
from pgmoe.layout import Blob, BlobLayout, ExpertLayer, Extent, TensorRegion
from pgmoe.models.byte_plan import BytePlan
from pgmoe.models.checkpoint import DTYPE_NAMES, Checkpoint
from pgmoe.models.pack import PACK, Pack, PackedLayer
from pgmoe.models.socket import ExpertSocket

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def plan_pack(
    checkpoint: Checkpoint, pack: Pack, sockets: list[ExpertSocket], *, expanded: torch.dtype
) -> BytePlan:
    """The experts as the pack has them; encoded ones are to be computed in the type `expanded`.

    Raises CorruptCheckpoint if the pack is not of the model in config.json.
    """
    stored = [(layer.name, len(layer.crc32)) for layer in pack.layers]
    expected = [(socket.name, socket.num_experts) for socket in sockets]
    if stored != expected:
        raise _corrupt(
            checkpoint.folder,
            f"has {_sum_up(stored)}, the config asks for {_sum_up(expected)}",
        )
    pairs = zip(pack.layers, sockets, strict=True)
    layers = (_layer(checkpoint.folder, packed, socket, expanded) for packed, socket in pairs)
    return BytePlan(tuple(layers), tuple(sorted(checkpoint.tensors, key=dot_natural_key)))


def _layer(folder: Path, packed: PackedLayer, socket: ExpertSocket, expanded: torch.dtype) -> ExpertLayer:
    layout = _layout(folder, packed)
    stored = {r.name: r.shape for r in layout.regions}, packed.transposed
    expected = socket.shapes, socket.ffn.transposed
    if packed.encoding == "plain" and stored != expected:  # others lie as suits whoever expands them
        raise _corrupt(folder, f"{packed.name} is {_form(*stored)}, the config asks for {_form(*expected)}")
    if packed.encoding != "plain" and (lost := _missing(packed, socket)):
        raise _corrupt(folder, f"{packed.name} is {packed.encoding} and has no {', '.join(lost)}")
    path = str(folder / packed.file)
    places = [(packed.blob_offset(expert), crc32) for expert, crc32 in enumerate(packed.crc32)]
    return ExpertLayer(
        name=packed.name,
        layout=layout,
        ffn=replace(socket.ffn, transposed=packed.transposed),
        extents=tuple(
            tuple(Extent(path, begin + r.offset, r.nbytes, r.name, 0) for r in layout.regions)
            for begin, _ in places
        ),
        top_k=socket.top_k,
        encoding=packed.encoding,
        expanded=None if packed.encoding == "plain" else expanded,
        blobs=tuple(Blob(path, begin, packed.blob_bytes, crc32) for begin, crc32 in places),
    )


def _missing(packed: PackedLayer, socket: ExpertSocket) -> list[str]:
    """What an encoded expert lacks: a tensor, or a matrix's scales."""
    named = {tensor.name for tensor in packed.tensors}
    wanted = [*socket.shapes, *(name + SCALE for name, shape in socket.shapes.items() if len(shape) > 1)]
    return [name for name in wanted if name not in named]


def _layout(folder: Path, packed: PackedLayer) -> BlobLayout:
    unknown = sorted({t.dtype for t in packed.tensors} - set(_DTYPES))
    if unknown or not packed.tensors:
        raise _corrupt(folder, f"{packed.name} has tensors of unknown type {unknown}")
    regions = tuple(TensorRegion(t.name, t.shape, _DTYPES[t.dtype], t.offset) for t in packed.tensors)
    layout = BlobLayout(regions, tight=True)
    if layout != layout.tightened() or packed.blob_bytes != layout.slot_bytes:
        raise _corrupt(folder, f"the tensors of {packed.name} are not laid out as in a slot")
    return layout


def _form(shapes: dict[str, tuple[int, ...]], transposed: bool) -> str:
    return f"{shapes}{', transposed' if transposed else ''}"


def _sum_up(layers: list[tuple[str, int]]) -> str:
    return f"{len(layers)} layers of {'/'.join(str(n) for n in sorted({n for _, n in layers}))} experts"


def _corrupt(folder: Path, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{folder / PACK}: {what}; remove the pack and make it again")
