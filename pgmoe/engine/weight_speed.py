"""How fast weights are read by computing with them, measured."""

from __future__ import annotations

import time

import torch

ROWS, COLUMNS = 16384, 4096
SECONDS = 0.3


@torch.inference_mode()
def measure_weight_reads(dtype: torch.dtype, device: torch.device) -> float:
    """Bytes of weights per second in products of a matrix and a vector, which decoding consists of.

    The matrix is larger than any cache: 128 MiB at 16 bits.
    """
    weight = torch.ones(ROWS, COLUMNS, dtype=dtype, device=device)
    x = torch.ones(COLUMNS, dtype=dtype, device=device)
    backend = torch.get_device_module(device)
    torch.mv(weight, x)
    backend.synchronize()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        torch.mv(weight, x)
        backend.synchronize()
        count += 1
    return count * weight.nbytes / (time.perf_counter() - begin)
