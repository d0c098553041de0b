"""Which bytes of which files make up each expert, whatever names the checkpoint uses.

transformers itself says where a checkpoint key goes and how per-expert tensors are fused; with the
safetensors headers that becomes file ranges. Nothing is read here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from pgmoe.errors import CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import BlobLayout, ExpertLayer, Extent, TensorRegion
from pgmoe.models.checkpoint import Checkpoint, StoredTensor
from pgmoe.models.socket import ExpertSocket


@dataclass
class _Sources:
    """What the checkpoint has for one expert tensor of one layer."""

    converter: WeightConverter | None = None
    tensors: dict[str, list[StoredTensor]] = field(default_factory=lambda: defaultdict(list))
    """By source pattern; a list over experts, or one fused tensor."""


@dataclass(frozen=True)
class BytePlan:
    """The experts as file ranges, and the keys of everything else."""

    layers: tuple[ExpertLayer, ...]
    dense_keys: tuple[str, ...]


def plan_bytes(checkpoint: Checkpoint, whole: PreTrainedModel, sockets: list[ExpertSocket]) -> BytePlan:
    """Find every expert's bytes. `whole` is the model on the meta device with all its parameters.

    Raises CorruptCheckpoint for missing or misshapen expert tensors, UnsupportedModel for a stored form
    that is no plain concatenation of ranges.
    """
    targets: dict[str, _Sources] = {}
    for socket in sockets:
        experts = [0] if socket.fused else range(socket.num_experts)
        targets |= {key.format(e): _Sources() for key in socket.keys.values() for e in experts}
    dense = []
    mapping = get_model_conversion_mapping(whole)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    state = whole.state_dict()
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, whole.base_model_prefix, state)
        if target not in targets:
            dense.append(key)
            continue
        sources = targets[target]
        sources.converter = by_pattern[pattern] if pattern else None
        sources.tensors[pattern or key].append(checkpoint.tensors[key])
    lost = [t for t, sources in targets.items() if not sources.tensors]
    if lost:
        raise CorruptCheckpoint(
            f"{checkpoint.folder}: no weights for {len(lost)} expert tensors, e.g. {lost[0]}"
        )
    return BytePlan(tuple(_layer(socket, targets) for socket in sockets), tuple(dense))


def _layer(socket: ExpertSocket, targets: dict[str, _Sources]) -> ExpertLayer:
    layout = BlobLayout.pack(socket.shapes, _one_dtype(socket, targets))
    extents = []
    for expert in range(socket.num_experts):
        ranges: list[Extent] = []
        for region in layout.regions:
            key = socket.keys[region.name].format(expert)
            if targets[key].converter is None:
                ranges.append(_plain_range(socket, targets[key], expert, region))
            else:
                ranges += _merged_ranges(socket, key, targets[key], expert, region)
        extents.append(tuple(ranges))
    return ExpertLayer(socket.name, layout, socket.ffn, tuple(extents), socket.top_k)


def _one_dtype(socket: ExpertSocket, targets: dict[str, _Sources]) -> torch.dtype:
    experts = range(1 if socket.fused else socket.num_experts)
    keys = [key.format(e) for key in socket.keys.values() for e in experts]
    stored = [t for key in keys for ts in targets[key].tensors.values() for t in ts]
    dtypes = {t.dtype for t in stored}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise UnsupportedModel(
            f"{stored[0].path}: {socket.name} stored as {names}; all experts must be of one type, float32, "
            "bfloat16 or float16: convert the checkpoint"
        )
    return dtypes.pop()


def _plain_range(socket: ExpertSocket, sources: _Sources, expert: int, region: TensorRegion) -> Extent:
    """Where the checkpoint has the expert's tensor, or all experts' one after another, as the model does."""
    (stored,) = next(iter(sources.tensors.values()))
    shape = (socket.num_experts, *region.shape) if socket.fused else region.shape
    if stored.shape != shape:
        raise CorruptCheckpoint(
            f"{stored.path}: {stored.key} is {stored.shape}, the config asks for {shape}; "
            "config.json and weights are not of the same model"
        )
    begin = expert * region.nbytes if socket.fused else 0
    return Extent(stored.path, stored.offset + begin, region.nbytes, region.name, 0)


def _merged_ranges(
    socket: ExpertSocket, key: str, sources: _Sources, expert: int, region: TensorRegion
) -> list[Extent]:
    """Where the checkpoint has pieces of each expert's tensor that the model has one after another."""
    assert sources.converter is not None
    stored = next(iter(sources.tensors.values()))[0]
    operations = sources.converter.operations
    dims = [(type(o), getattr(o, "dim", None)) for o in operations]
    if dims not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
        names = ", ".join(type(o).__name__ for o in operations)
        raise UnsupportedModel(
            f"{stored.path}: {key} is stored in a form that needs {names}; save it with save_pretrained first"
        )
    pieces = []
    for pattern in sources.converter.source_patterns:
        of_experts = sources.tensors.get(pattern, [])
        if len(of_experts) != socket.num_experts:
            raise CorruptCheckpoint(
                f"{stored.path}: {key}: {len(of_experts)} of {socket.num_experts} experts have {pattern}"
            )
        pieces.append(of_experts[expert])
    rows = sum(piece.shape[0] for piece in pieces)
    if any((rows, *piece.shape[1:]) != region.shape for piece in pieces):
        raise CorruptCheckpoint(
            f"{pieces[0].path}: {' and '.join(p.key for p in pieces)} are {[p.shape for p in pieces]}, the "
            f"config asks for {region.shape} together; config.json and weights are not of the same model"
        )
    ranges, place = [], 0
    for piece in pieces:
        ranges.append(Extent(piece.path, piece.offset, piece.nbytes, region.name, place))
        place += piece.nbytes
    return ranges
