"""Which store reads a model's files."""

from __future__ import annotations

from pgmoe.experts.stores.base import ExpertStore
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.stores.pack import PackStore
from pgmoe.layout import ExpertLayer


def open_disk_store(layers: tuple[ExpertLayer, ...], *, direct_io: bool, check_pack: bool) -> ExpertStore:
    """The disk tier over these layers' files. Raises ExpertReadError if one cannot be opened.

    `check_pack` compares a pack's blobs with their checksums meanwhile; other files have none.
    """
    if all(layer.blobs for layer in layers):
        return PackStore(layers, direct_io=direct_io, check=check_pack)
    return DiskStore(layers, direct_io=direct_io)
