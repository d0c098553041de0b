"""Who computes attention over a pool."""

from __future__ import annotations

import logging

import torch

from pgmoe.kv.attention import Attention
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import KernelAttention, takes
from pgmoe.kv.pool import KvPool

_logger = logging.getLogger(__name__)


def attention_over(pool: KvPool) -> Attention:
    """Kernels for what they can do, on CUDA devices and on CPUs with AMX; gathering for all else."""
    gathered = GatheredAttention(pool)
    if pool.device.type == "cuda":
        return by_kernels(pool, gathered)
    on_cpu = pool.device.type == "cpu"
    taken = on_cpu and any(takes(shape, pool.block_tokens) for shape in pool.shapes)
    return KernelAttention(pool, gathered) if taken else gathered


def by_kernels(pool: KvPool, gathered: GatheredAttention) -> Attention:
    """Kernels if a trial of them goes well, which compiles some; else `gathered`, and a warning says why."""
    try:
        from pgmoe.kv.block_attention import BlockAttention
        from pgmoe.kv.trial import try_out

        try_out(BlockAttention, pool)
    except (torch.AcceleratorError, torch.OutOfMemoryError):  # gathering would meet the same
        raise
    except Exception as error:  # whatever else it is: no Triton, no compiler, numbers that are wrong
        _logger.warning(
            "keys and values are gathered for attention, since its kernels do not work: %r", error
        )
        return gathered
    return BlockAttention(pool, gathered)
