from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pgmoe.encodings import expanded_shape, make_decoder, scale_shape

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 128


def random_fp8(generator: torch.Generator, *shape: int) -> Tensor:
    """Every finite float8_e4m3fn value, zeros of both signs and subnormals among them."""
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[codes & 127 == 127] = 1  # not a number
    return codes.view(torch.float8_e4m3fn)


def decoded(encoding: str, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(expanded_shape(encoding, tuple(values.shape)), dtype=dtype)
    make_decoder(encoding, dtype, CPU)(values, scales, out)
    return out


@settings(deadline=None, max_examples=25)
@given(
    pieces=st.integers(1, 3),
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_fp8_is_each_value_times_its_blocks_scale(
    pieces: int, rows: int, columns: int, dtype: torch.dtype, scale_dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = random_fp8(generator, pieces * rows, columns)
    grid = scale_shape("fp8_block", (pieces, rows, columns))
    scales = (torch.rand(grid, generator=generator) / 100).to(scale_dtype)
    found = decoded("fp8_block", values, scales, dtype)
    at = torch.arange(pieces * rows)
    scale_of = scales.float()[at // rows, at % rows // BLOCK][:, torch.arange(columns) // BLOCK]
    assert torch.equal(found, (values.float() * scale_of).to(dtype))
    for number, piece in enumerate(values.chunk(pieces)):
        theirs = _dequantize_fp8_weight(piece, scales[number], [BLOCK, BLOCK], torch.float32)
        assert torch.equal(found[number * rows : (number + 1) * rows], theirs.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_blocks_are_as_transformers_loads_them(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    values, scales = random_fp8(generator, 384, 256), torch.rand(3, 2, generator=generator)
    theirs = Fp8Dequantize(None)._dequantize_one(values, scales, output_dtype=dtype)
    assert torch.equal(decoded("fp8_block", values, scales[None], dtype), theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (70, 3), (256, 2), (600, 5)], ids=str)
def test_mxfp4_is_what_transformers_makes_of_it(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """All scales: also those that take values out of this type's range."""
    generator = torch.Generator().manual_seed(sum(shape))
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    assert scale_shape("mxfp4", tuple(blocks.shape)) == shape
    (theirs,) = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)
    found = decoded("mxfp4", blocks, scales, dtype)
    torch.testing.assert_close(found, theirs.T, rtol=0, atol=0, equal_nan=True)
    numbers = ~found.isnan()
    assert torch.equal(found.signbit()[numbers], theirs.T.signbit()[numbers])


def test_every_byte_of_mxfp4_stands_for_two_values_the_lower_half_first() -> None:
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    values = magnitudes + [-m for m in magnitudes]
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)
    found = decoded("mxfp4", blocks, torch.full((16, 1), 128, dtype=torch.uint8), torch.float32)
    assert found.flatten().tolist() == [2 * values[half] for b in range(256) for half in (b % 16, b // 16)]


def test_bytes_that_start_anywhere_are_expanded_the_same() -> None:
    """In a slot a tensor lies as far from a page boundary as in its file, at any byte."""
    generator = torch.Generator().manual_seed(2)
    memory = torch.randint(0, 120, (130 * 200 + 7,), generator=generator, dtype=torch.uint8)
    odd = memory[7:].view(torch.float8_e4m3fn).view(130, 200)
    scales = torch.rand(1, 2, 2, generator=generator)
    found = decoded("fp8_block", odd, scales, torch.bfloat16)
    assert torch.equal(found, decoded("fp8_block", odd.clone(), scales, torch.bfloat16))
