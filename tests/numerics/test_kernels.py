"""Models computed by our kernels for CPUs: as by torch within rounding, and the same bits in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.cpu.kernels import available
from pgmoe.engine import assembly, batching
from pgmoe.engine.engine import Engine
from pgmoe.experts import tokens
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import KernelAttention
from pgmoe.models.linear import KernelMatrix
from pgmoe.request import TokenLogprob
from tests.support.checkpoints import tiny_model, wide_config
from tests.support.mixtures import alone, play, random_mixture

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")

MOST_ROWS = 64
"""Tokens of a step, all of whose products are by kernels."""
MIXTURE = random_mixture(3, 24, 120, 150, 12)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(wide_config(), torch.bfloat16).save_pretrained(folder)
    return folder


def engine_of(folder: Path, **options: object) -> Engine:
    chunk = {"prefill_chunk": MOST_ROWS - 8, "max_running": 8}
    return Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", **chunk, **options}))


def together(engine: Engine) -> dict[str, tuple[TokenLogprob, ...]]:
    """A mixture's tokens, and what was said of their likelihood."""
    played = play(engine, MIXTURE)
    assert played.most_running > 4
    return {name: tuple(t for p in pieces for t in p.logprobs) for name, pieces in played.pieces.items()}


def answers(folder: Path, **options: object) -> dict[str, tuple[TokenLogprob, ...]]:
    engine = engine_of(folder, **options)
    try:
        return together(engine)
    finally:
        engine.close()


def test_they_are_all_in_use(wide: Path) -> None:
    engine = engine_of(wide)
    model = engine.loaded.model
    assert {"KernelLinear", "KernelMixtralRMSNorm"} <= {type(module).__name__ for module in model.modules()}
    assert sum(isinstance(weight, KernelMatrix) for weight in model.parameters()) == 2
    assert isinstance(engine._stepper._runner._pages._attention, KernelAttention)  # type: ignore[attr-defined]
    engine.close()


@pytest.mark.parametrize("device_memory", ["100%", "30%"])
def test_in_any_company_a_request_gets_the_bits_that_it_gets_alone(wide: Path, device_memory: str) -> None:
    engine = engine_of(wide, device_memory=device_memory)
    for name, found in together(engine).items():
        (request,) = [a.request for a in MIXTURE if a.request.request_id == name]
        assert found == tuple(alone(engine, request).logprobs)[: len(found)]
    engine.close()


def test_prompts_in_smaller_chunks_and_without_prefixes_get_the_same_bits(wide: Path) -> None:
    assert answers(wide, prefill_chunk=11, prefix_cache=False) == answers(wide)


def test_they_round_otherwise_than_torch_and_no_more(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernels = answers(wide)
    monkeypatch.setattr(assembly, "use_kernels", lambda model: None)
    monkeypatch.setattr(batching, "attention_over", GatheredAttention)
    monkeypatch.setattr(tokens.KernelTokens, "takes", staticmethod(lambda *given: False))
    by_torch = answers(wide)
    first = [(by_kernels[name][0], by_torch[name][0]) for name in by_torch if by_torch[name]]
    close = [abs(a.logprob - b.logprob) < 0.05 for a, b in first if a.token_id == b.token_id]
    assert len(close) > 0.8 * len(first)
    assert sum(close) > 0.9 * len(close)
