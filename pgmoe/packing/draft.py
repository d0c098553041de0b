"""A pack before its bytes are written: everything that will stand in pack.json but the checksums."""

from __future__ import annotations

from pgmoe.layout import ExpertLayer
from pgmoe.models.checkpoint import DTYPE_NAMES, StoredTensor
from pgmoe.models.loader import ModelPlan
from pgmoe.models.pack import DenseFile, Pack, PackedLayer, PackedTensor
from pgmoe.packing.header import dense_header, expert_header
from pgmoe.packing.source import source_of


def draft_pack(plan: ModelPlan) -> Pack:
    """The pack of this model, all checksums 0."""
    tensors = dense_tensors(plan)
    file_bytes = len(dense_header(tensors)) + sum(tensor.nbytes for tensor in tensors)
    return Pack(
        version=1,
        source=source_of(plan.checkpoint),
        dense=DenseFile(file="dense.safetensors", file_bytes=file_bytes, crc32=0),
        layers=tuple(_layer(index, layer) for index, layer in enumerate(plan.layers)),
    )


def dense_tensors(plan: ModelPlan) -> list[StoredTensor]:
    """Those that are no experts', as the pack's file has them: wide types first, so that all lie aligned."""
    tensors = [plan.checkpoint.tensors[key] for key in plan.dense_keys]
    return sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)


def _layer(index: int, layer: ExpertLayer) -> PackedLayer:
    layout = layer.layout.tightened()
    return PackedLayer(
        name=layer.name,
        file=f"experts-{index:05}.safetensors",
        encoding=layer.encoding,
        transposed=layer.ffn.transposed,
        first_blob=len(expert_header(layer.num_experts, layout.slot_bytes)),
        blob_bytes=layout.slot_bytes,
        tensors=tuple(
            PackedTensor(name=r.name, shape=r.shape, dtype=DTYPE_NAMES[r.dtype], offset=r.offset)
            for r in layout.regions
        ),
        crc32=(0,) * layer.num_experts,
    )
