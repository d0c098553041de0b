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
from pgmoe.layout import BlobLayout, ExpertLayer, Extent
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
    dtype = _one_dtype(socket, targets)
    layout = BlobLayout.pack(socket.shapes, dtype)
    extents = []
    for expert in range(socket.num_experts):
        ranges: list[Extent] = []
        for region in layout.regions:
            key = socket.keys[region.name].format(expert)
            found = _ranges(socket, key, targets[key], expert, region.name)
            if sum(r.nbytes for r in found) != region.nbytes:
                stored = sum(r.nbytes for r in found)
                raise CorruptCheckpoint(
                    f"{found[0].path}: expert {expert} of {socket.name}: {region.name} has {stored} bytes, "
                    f"the config's shape {region.shape} needs {region.nbytes}"
                )
            ranges += found
        extents.append(tuple(ranges))
    return ExpertLayer(socket.name, layout, socket.ffn, tuple(extents), socket.top_k)


def _one_dtype(socket: ExpertSocket, targets: dict[str, _Sources]) -> torch.dtype:
    experts = range(1 if socket.fused else socket.num_experts)
    keys = [key.format(e) for key in socket.keys.values() for e in experts]
    dtypes = {t.dtype for key in keys for ts in targets[key].tensors.values() for t in ts}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        raise UnsupportedModel(
            f"{socket.name}: experts stored as {names}; all must be one of float32, bfloat16, float16"
        )
    return dtypes.pop()


def _ranges(socket: ExpertSocket, key: str, sources: _Sources, expert: int, tensor: str) -> list[Extent]:
    num_experts = socket.num_experts
    if sources.converter is None:
        (stored,) = next(iter(sources.tensors.values()))
        size = stored.nbytes // num_experts if socket.fused else stored.nbytes
        begin = expert * size if socket.fused else 0
        return [Extent(stored.path, stored.offset + begin, size, tensor, 0)]
    operations = [type(o) for o in sources.converter.operations]
    if operations not in ([MergeModulelist], [MergeModulelist, Concatenate]):
        names = ", ".join(o.__name__ for o in operations)
        raise UnsupportedModel(
            f"{key}: stored in a form that needs {names}; save it with save_pretrained first"
        )
    ranges, place = [], 0
    for pattern in sources.converter.source_patterns:
        stored_list = sources.tensors.get(pattern, [])
        if len(stored_list) != num_experts:
            raise CorruptCheckpoint(f"{key}: {len(stored_list)} of {num_experts} experts have {pattern}")
        stored = stored_list[expert]
        ranges.append(Extent(stored.path, stored.offset, stored.nbytes, tensor, place))
        place += stored.nbytes
    return ranges
