"""How stored bytes stand for weights, and how they are expanded. On any device, in plain torch.

`fp8_block` is DeepSeek-V3's: float8_e4m3fn values, each 128 x 128 block of which has a scale. `mxfp4` is the
Open Compute Project's microscaling format as gpt_oss stores it: two e2m1 values a byte, the lower half first,
each 32 of a row with a power of two. Value times scale is a float32, rounded to the wanted type at the end,
as transformers' dequantising has it. Shape letters: R rows, C columns, G groups in a row, P pieces one below
the other.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Encoding = Literal["plain", "fp8_block", "mxfp4"]
SCALE = "_scale"
"""A tensor's scales are called as it is, with this behind."""
FP8_BLOCK = 128
"""Rows and columns that share a scale."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_STRIP = 256
"""Rows of MXFP4 expanded at a time: few enough that their codes stay in a core's cache."""


class Decoder(Protocol):
    """Expands matrices of one encoding."""

    def __call__(self, values: Tensor, scales: Tensor, out_RC: Tensor) -> None:
        """Write the weights to `out_RC`, contiguous and on the decoder's device."""
        ...


class Fp8Decoder:
    """values (R, C) float8_e4m3fn; scales (P, ceil(R / P / 128), ceil(C / 128)) of any float type.

    Each of the P pieces has a grid of blocks of its own, whose last row and column may be cut short.
    """

    def __init__(self, device: torch.device) -> None:
        codes = torch.arange(256, dtype=torch.uint8)
        self._value_of = codes.view(torch.float8_e4m3fn).float().to(device)

    def __call__(self, values: Tensor, scales: Tensor, out_RC: Tensor) -> None:
        """See Decoder. 128 rows at a time, so that their float32 products stay in the cache."""
        num_pieces, num_columns = len(scales), values.shape[1]
        pieces = zip(values.chunk(num_pieces), scales.float(), out_RC.chunk(num_pieces), strict=True)
        for piece, scales_rc, out_piece in pieces:
            strips = zip(
                torch.split(piece, FP8_BLOCK), scales_rc, torch.split(out_piece, FP8_BLOCK), strict=True
            )
            for strip, scales_c, out_strip in strips:
                codes = strip.view(torch.uint8).flatten().int()
                product = self._value_of.index_select(0, codes).view(strip.shape)
                product *= scales_c.repeat_interleave(FP8_BLOCK)[:num_columns]
                out_strip.copy_(product)


class Mxfp4Decoder:
    """values (R, G, 16) uint8, scales (R, G) uint8: exponents of two, 127 above what they stand for."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        value_of = torch.tensor(_E2M1 + tuple(-v for v in _E2M1), dtype=dtype)
        byte = torch.arange(256)
        pair = torch.stack([value_of[byte & 15], value_of[byte >> 4]], dim=-1)
        exponent = torch.arange(-127, 129, dtype=torch.int32)
        # Of equal shapes: torch.ldexp warns of its own doing if it has to broadcast one of them.
        pairs = pair.repeat(256, 1, 1).ldexp_(exponent[:, None, None].expand(256, 256, 2))  # (scale, byte, 2)
        self._word = {2: torch.int32, 4: torch.int64}[dtype.itemsize]  # one that holds a pair
        self._pair_of = pairs.view(self._word).flatten().to(device)

    def __call__(self, values: Tensor, scales: Tensor, out_RC: Tensor) -> None:
        """See Decoder. A byte and its scale are looked up together: nothing is left to compute."""
        strips = zip(*(torch.split(t, _STRIP) for t in (values, scales, out_RC)), strict=True)
        for strip, exponents, out_strip in strips:
            codes = strip.int()
            codes += (exponents.int() << 8)[..., None]
            torch.index_select(self._pair_of, 0, codes.flatten(), out=out_strip.view(self._word).flatten())


def make_decoder(encoding: Encoding, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder of an encoding other than `plain`, for weights of `dtype` (float32, bfloat16, float16)."""
    return Mxfp4Decoder(dtype, device) if encoding == "mxfp4" else Fp8Decoder(device)


def expanded_shape(encoding: Encoding, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the weights that values of this shape stand for."""
    return (*stored[:-2], stored[-2] * stored[-1] * 2) if encoding == "mxfp4" else stored


def scale_shape(encoding: Encoding, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales that belong to values of this shape."""
    if encoding == "mxfp4":
        return stored[:-1]
    return (*stored[:-2], *(-(-size // FP8_BLOCK) for size in stored[-2:]))
