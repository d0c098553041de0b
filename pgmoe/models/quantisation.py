"""Which quantisation a checkpoint's config.json tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgmoe.encodings import FP8_BLOCK, Encoding
from pgmoe.errors import UnsupportedModel

_SERVED = f"served are fp8 in blocks of {FP8_BLOCK} x {FP8_BLOCK}, mxfp4, and float32, bfloat16 or float16"


def read_encoding(folder: Path, config: dict[str, Any]) -> Encoding:
    """How the quantised tensors of this checkpoint are stored; `plain` if none is.

    Raises UnsupportedModel for what is not served.
    """
    quantised = config.get("quantization_config")
    if quantised is None:
        return "plain"
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method == "mxfp4":
        return "mxfp4"
    if method != "fp8":
        raise UnsupportedModel(
            f"{folder}: quantised by {method or quantised!r}; {_SERVED}: take or make one of those"
        )
    block = quantised.get("weight_block_size")
    if block != [FP8_BLOCK, FP8_BLOCK]:
        raise UnsupportedModel(
            f"{folder}: fp8 with weight_block_size {block}; {_SERVED}: take or make one of those"
        )
    return "fp8_block"
