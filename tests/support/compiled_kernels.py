"""Compiles the attention kernels for NVIDIA's devices, none of which has to be there; prints what each needs.

Run in a process of its own with TRITON_INTERPRET=0: when it is imported a kernel is made to be compiled or to
be interpreted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pgmoe.kv.block_kernel import attend_tile, merge_parts
from pgmoe.kv.tile_shape import NUM_STAGES, NUM_WARPS, TileShape

BLOCK_TOKENS = 16
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
INDICES = {"table", "tiles", "spans_T2", "merges"}

SHAPES = (
    (90, TileShape(8, 4, 128, 128, torch.bfloat16)),
    (86, TileShape(2, 3, 24, 16, torch.float32)),
)
"""Compute capability, and a layer."""


def needs() -> Iterator[dict[str, Any]]:
    """Shared memory of each kernel."""
    for number, (capability, shape) in enumerate(SHAPES):
        sinks = number % 2 == 1
        for parts in (False, True):
            name = NAMES[shape.dtype]
            constants = {
                "BLOCK": BLOCK_TOKENS,
                "GROUPS": shape.groups,
                "WIDTH": shape.width,
                "VALUE_WIDTH": shape.value_width,
                "PADDED": shape.padded,
                "VALUE_PADDED": shape.value_padded,
                "LANES": shape.lone_lanes if parts else shape.chunk_lanes,
                "KEYS": shape.keys,
                "SINKS": sinks,
                "PARTS": parts,
            }
            pointers = {"out": "fp32"} if parts else {}
            yield {
                "kernel": "attend_tile",
                "shape": str(shape),
                "parts": parts,
                "shared_bytes": shared_bytes(attend_tile, capability, name, pointers, constants),
            }
        constants = {
            "VALUE_WIDTH": shape.value_width,
            "VALUE_PADDED": shape.value_padded,
            "SINKS": sinks,
        }
        yield {
            "kernel": "merge_parts",
            "shape": str(shape),
            "shared_bytes": shared_bytes(merge_parts, capability, name, {"parts_SQX": "fp32"}, constants),
        }


def shared_bytes(
    kernel: Any, capability: int, dtype: str, pointers: dict[str, str], constants: dict[str, Any]
) -> int:
    """`pointers`: to what, where it is not to numbers of `dtype`, nor to int32."""
    types = {name: f"*{pointers.get(name, 'i32' if name in INDICES else dtype)}" for name in kernel.arg_names}
    types |= {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(signature) if types[name][0] == "*"
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    shared: int = compiled.metadata.shared
    return shared


if __name__ == "__main__":
    for need in needs():
        print(json.dumps(need))
