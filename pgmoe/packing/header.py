"""The headers of a pack's safetensors files, padded so that what follows starts at a page.

Format: https://github.com/huggingface/safetensors#format; a header may end in spaces.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable

from pgmoe.layout import PAGE, round_up
from pgmoe.models.checkpoint import DTYPE_NAMES, StoredTensor


def dense_header(tensors: Iterable[StoredTensor]) -> bytes:
    """Of a file that holds these tensors one after another."""
    entries, place = {}, 0
    for tensor in tensors:
        entries[tensor.key] = _entry(DTYPE_NAMES[tensor.dtype], tensor.shape, place, tensor.nbytes)
        place += tensor.nbytes
    return _header(entries)


def expert_header(num_experts: int, blob_bytes: int) -> bytes:
    """Of a file that holds a layer's blobs: the rows of one uint8 tensor, `experts`."""
    nbytes = num_experts * blob_bytes
    return _header({"experts": _entry("U8", (num_experts, blob_bytes), 0, nbytes)})


def _entry(dtype: str, shape: tuple[int, ...], begin: int, nbytes: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + nbytes]}


def _header(entries: dict[str, dict[str, object]]) -> bytes:
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    length = round_up(8 + len(text), PAGE) - 8
    return struct.pack("<Q", length) + text.ljust(length)
