"""Who computes attention over a pool."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgmoe.attention_rule import AttentionRule
from pgmoe.kv.attention import Attention
from pgmoe.kv.choice import attention_over, by_kernels
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.pool import KvPool, LayerShape

SHAPES = tuple(LayerShape(2, width, 8, torch.float32) for width in (8, 8, 24))
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here, not interpreted"
)


@pytest.fixture
def pool() -> KvPool:
    return KvPool(SHAPES, 2, 16, torch.device("cpu"))


def test_on_a_cpu_keys_and_values_are_gathered(pool: KvPool) -> None:
    assert isinstance(attention_over(pool), GatheredAttention)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_kernels_are_taken_when_they_do_as_gathering_does(dtype: torch.dtype) -> None:
    block_attention = pytest.importorskip("pgmoe.kv.block_attention")
    pool = KvPool([LayerShape(2, 24, 16, dtype)], 2, 16, torch.device("cpu"))
    assert isinstance(by_kernels(pool, GatheredAttention(pool)), block_attention.BlockAttention)


def _off(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: own(*given) + 0.01


def _nan(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: own(*given) * torch.nan


def _failing(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def fails(self: Attention, layer: int, queries: Tensor, rule: AttentionRule) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    return fails


@interpreted
@pytest.mark.parametrize(
    ("fault", "said"),
    [(_off, "differ by 0."), (_nan, "differ by nan"), (_failing, "Failed to find C compiler")],
)
def test_kernels_that_do_not_work_are_not_taken(
    pool: KvPool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[..., Any],
    said: str,
) -> None:
    attention = pytest.importorskip("pgmoe.kv.block_attention").BlockAttention
    monkeypatch.setattr(attention, "own", fault(attention.own))
    gathered = GatheredAttention(pool)
    assert by_kernels(pool, gathered) is gathered
    assert said in caplog.text


def test_without_triton_keys_and_values_are_gathered(
    pool: KvPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pgmoe.kv.block_attention", None)
    gathered = GatheredAttention(pool)
    assert by_kernels(pool, gathered) is gathered
    assert "ModuleNotFoundError" in caplog.text


@interpreted
def test_a_device_without_memory_is_no_fault_of_the_kernels(
    pool: KvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = pytest.importorskip("pgmoe.kv.block_attention").BlockAttention

    def fails(self: Attention, layer: int, queries: Tensor, rule: AttentionRule) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(attention, "own", fails)
    with pytest.raises(torch.OutOfMemoryError):
        by_kernels(pool, GatheredAttention(pool))
