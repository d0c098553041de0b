"""Which bytes of which files make up each expert, whatever names the checkpoint uses.

transformers itself says where a checkpoint key goes and how per-expert tensors are fused; with the
safetensors headers that becomes file ranges. Nothing is read here, and nothing converted: quantised experts
are planned as they are stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
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

from pgmoe.encodings import Encoding
from pgmoe.errors import CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import ExpertLayer
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.expert_tensors import lay_out
from pgmoe.models.quantised_tensor import QuantisedTensor, Weight, join
from pgmoe.models.socket import ExpertSocket


@dataclass
class _Sources:
    """What the checkpoint has for one expert tensor of one layer."""

    converter: WeightConverter | None = None
    tensors: dict[str, list[Weight]] = field(default_factory=lambda: defaultdict(list))
    """By source pattern; a list over experts, or one fused tensor."""


@dataclass(frozen=True)
class BytePlan:
    """The experts as file ranges, and the keys of everything else."""

    layers: tuple[ExpertLayer, ...]
    dense_keys: tuple[str, ...]


def plan_bytes(
    checkpoint: Checkpoint, whole: PreTrainedModel, sockets: list[ExpertSocket], *, expanded: torch.dtype
) -> BytePlan:
    """Find every expert's bytes. `whole` is the model on the meta device with all its parameters.

    Quantised experts are to be computed in the type `expanded`. Raises CorruptCheckpoint for missing or
    misshapen expert tensors, UnsupportedModel for a stored form that is no plain concatenation of ranges.
    """
    targets: dict[str, _Sources] = {}
    for socket in sockets:
        experts = [0] if socket.fused else range(socket.num_experts)
        targets |= {key.format(e): _Sources() for key in socket.keys.values() for e in experts}
    dense: list[str] = []
    weights = join(checkpoint)
    for key, target, pattern, converter in _targets(weights, whole):
        if target not in targets:
            dense += [part.key for part in weights[key].parts.values()]
            continue
        sources = targets[target]
        sources.converter = converter
        sources.tensors[pattern or key].append(weights[key])
    lost = [t for t, sources in targets.items() if not sources.tensors]
    if lost:
        raise CorruptCheckpoint(
            f"{checkpoint.folder}: no weights for {len(lost)} expert tensors, e.g. {lost[0]}"
        )
    layers = (_layer(socket, targets, checkpoint.encoding, expanded) for socket in sockets)
    return BytePlan(tuple(layers), tuple(dense))


def stored_keys(checkpoint: Checkpoint, model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The checkpoint's key of each of these tensors of the model. Raises CorruptCheckpoint if one lacks."""
    found = {target: key for key, target, _, _ in _targets(join(checkpoint), model)}
    lost = [name for name in names if name not in found]
    if lost:
        raise CorruptCheckpoint(f"{checkpoint.folder}: no weights for {len(lost)} tensors, e.g. {lost[0]}")
    return {name: found[name] for name in names}


def _targets(
    keys: Iterable[str], model: PreTrainedModel
) -> Iterator[tuple[str, str, str | None, WeightConverter | None]]:
    """Of each key: the model's name for it, and by which pattern and converter it gets there, if any."""
    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    state = model.state_dict()
    for key in sorted(keys, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        yield key, target, pattern, by_pattern[pattern] if pattern else None


def _layer(
    socket: ExpertSocket, targets: dict[str, _Sources], encoding: Encoding, expanded: torch.dtype
) -> ExpertLayer:
    if not _is_quantised(socket, targets):
        encoding = "plain"
    shapes = socket.shapes
    if encoding == "mxfp4" and socket.ffn.transposed:  # stored as (outputs, inputs) all the same
        shapes = {name: shape[::-1] for name, shape in shapes.items()}
    experts = []
    for expert in range(socket.num_experts):
        pieces = {}
        for name, key in socket.keys.items():
            sources = targets[key.format(expert)]
            find = _plain_piece if sources.converter is None else _merged_pieces
            pieces[name] = find(socket, sources, expert, name, shapes[name])
        experts.append(pieces)
    return lay_out(socket, experts, encoding, expanded)


def _is_quantised(socket: ExpertSocket, targets: dict[str, _Sources]) -> bool:
    experts = range(1 if socket.fused else socket.num_experts)
    matrices = [key.format(e) for n, key in socket.keys.items() if len(socket.shapes[n]) > 1 for e in experts]
    weights = [w for key in matrices for ws in targets[key].tensors.values() for w in ws]
    kinds = {isinstance(weight, QuantisedTensor) for weight in weights}
    if len(kinds) > 1:
        raise UnsupportedModel(
            f"{weights[0].path}: {socket.name} is quantised in part; all its experts must be, or none"
        )
    return kinds.pop()


def _plain_piece(
    socket: ExpertSocket, sources: _Sources, expert: int, name: str, shape: tuple[int, ...]
) -> list[Weight]:
    """Where the checkpoint has the expert's tensor, or all experts' one after another, as the model does."""
    (stored,) = next(iter(sources.tensors.values()))
    wanted = (socket.num_experts, *shape) if socket.fused else shape
    if stored.shape != wanted:
        raise CorruptCheckpoint(
            f"{stored.path}: {stored.key} is {stored.shape}, the config asks for {wanted}; "
            "config.json and weights are not of the same model"
        )
    return [stored.part(expert) if socket.fused else stored]


def _merged_pieces(
    socket: ExpertSocket, sources: _Sources, expert: int, name: str, shape: tuple[int, ...]
) -> list[Weight]:
    """Where the checkpoint has pieces of each expert's tensor that the model has one after another."""
    assert sources.converter is not None
    key, path = socket.keys[name], next(iter(sources.tensors.values()))[0].path
    operations = sources.converter.operations
    dims = [(type(o), getattr(o, "dim", None)) for o in operations]
    if dims not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
        names = ", ".join(type(o).__name__ for o in operations)
        raise UnsupportedModel(
            f"{path}: {key} is stored in a form that needs {names}; save it with save_pretrained first"
        )
    pieces = []
    for pattern in sources.converter.source_patterns:
        of_experts = sources.tensors.get(pattern, [])
        if len(of_experts) != socket.num_experts:
            raise CorruptCheckpoint(
                f"{path}: {key}: {len(of_experts)} of {socket.num_experts} experts have {pattern}"
            )
        pieces.append(of_experts[expert])
    rows = sum(piece.shape[0] for piece in pieces)
    if any((rows, *piece.shape[1:]) != shape for piece in pieces):
        raise CorruptCheckpoint(
            f"{pieces[0].path}: {' and '.join(p.key for p in pieces)} are {[p.shape for p in pieces]}, the "
            f"config asks for {shape} together; config.json and weights are not of the same model"
        )
    return pieces
