"""Models computed by our kernels for CPUs: as by torch within rounding, and the same bits in any company."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from transformers import PretrainedConfig

from pgmoe.config import EngineConfig
from pgmoe.cpu.kernel_tokens import suits
from pgmoe.cpu.kernels import SLAB, available
from pgmoe.engine import assembly, batching
from pgmoe.engine.engine import Engine
from pgmoe.experts import tokens
from pgmoe.kv.gathered import GatheredAttention
from pgmoe.kv.kernel_attention import KernelAttention
from pgmoe.models.linear import KernelMatrix
from pgmoe.request import TokenLogprob
from tests.support.checkpoints import tiny_model, wide_config, wide_switch_config
from tests.support.mixtures import alone, play, random_mixture

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")

CHUNK = 2 * SLAB
"""So that steps have few tokens, and many."""
Answers = dict[str, tuple[TokenLogprob, ...]]
MIXTURE = random_mixture(3, 24, 120, 150, 12)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(wide_config(), torch.bfloat16).save_pretrained(folder)
    return folder


def engine_of(folder: Path, **options: object) -> Engine:
    chunk = {"prefill_chunk": CHUNK, "max_running": 8}
    return Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", **chunk, **options}))


def together(engine: Engine) -> Answers:
    """A mixture's tokens, and what was said of their likelihood."""
    played = play(engine, MIXTURE)
    assert played.most_running > 4
    return {name: tuple(t for p in pieces for t in p.logprobs) for name, pieces in played.pieces.items()}


def answers(folder: Path, **options: object) -> Answers:
    engine = engine_of(folder, **options)
    try:
        return together(engine)
    finally:
        engine.close()


def test_they_are_all_in_use(wide: Path) -> None:
    engine = engine_of(wide)
    model = engine.loaded.model
    used = {type(module).__name__ for module in model.modules()}
    assert {
        "KernelLinear",
        "KernelMixtralRMSNorm",
        "KernelMixtralAttention",
        "KernelMixtralTopKRouter",
        "PlainMixtralDecoderLayer",
        "PlainMixtralSparseMoeBlock",
    } <= used
    assert not any(isinstance(weight, KernelMatrix) for weight in model.parameters()), "its routers' kernels"
    assert isinstance(engine._stepper._runner._pages._attention, KernelAttention)  # type: ignore[attr-defined]
    assert all(suits(layer, model.config.hidden_size) for layer in engine.loaded.layers)
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


@pytest.mark.parametrize("config", [wide_config(), wide_switch_config()], ids=["decoder", "encoder-decoder"])
def test_answers_are_as_near_to_exact_ones_as_torchs(
    config: PretrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(config, torch.bfloat16)
    model.save_pretrained(tmp_path / "rounded")
    model.float().save_pretrained(tmp_path / "exact")
    exact, by_kernels = (answers(tmp_path / name) for name in ("exact", "rounded"))
    monkeypatch.setattr(assembly, "use_kernels", lambda model: None)
    monkeypatch.setattr(batching, "attention_over", GatheredAttention)
    monkeypatch.setattr(tokens.KernelTokens, "takes", staticmethod(lambda *given: False))
    by_torch = answers(tmp_path / "rounded")
    assert by_torch != by_kernels, "nobody else computes"
    (kernels_off, kernels_same), (torch_off, torch_same) = off(by_kernels, exact), off(by_torch, exact)
    assert kernels_same >= torch_same - 2 > len(exact) / 3  # 16 bits may choose another token or expert
    assert kernels_off < 1.5 * torch_off


def off(found: Answers, exact: Answers) -> tuple[float, int]:
    """How far off the first token's log-probability is in a middling answer, of so many that have it."""
    first = [(found[name][0], exact[name][0]) for name in exact if exact[name]]
    same = [abs(a.logprob - b.logprob) for a, b in first if a.token_id == b.token_id]
    return statistics.median(same), len(same)
