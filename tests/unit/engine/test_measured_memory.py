"""An engine's peak memory against its budget, measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pgmoe.openmp import ENVIRONMENT
from tests.support.checkpoints import tiny_model


def olmoe() -> transformers.PretrainedConfig:
    """8 KiB of keys and values for a token."""
    return transformers.OlmoeConfig(
        vocab_size=4096,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        intermediate_size=512,
        num_experts=16,
        num_experts_per_tok=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def switch() -> transformers.PretrainedConfig:
    """16 KiB for a token of an answer, 18 KiB for one of a prompt; scores of its attention lie in memory."""
    return transformers.SwitchTransformersConfig(
        vocab_size=4096,
        d_model=512,
        d_kv=64,
        d_ff=512,
        num_heads=8,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_experts=16,
        expert_capacity=512,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )


MODELS: dict[str, tuple[Callable[[], transformers.PretrainedConfig], torch.dtype]] = {
    "olmoe": (olmoe, torch.bfloat16),
    "switch": (switch, torch.float32),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (config, dtype) in MODELS.items():
        tiny_model(config(), dtype).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


def measure(folder: Path, num_prompt: int, num_answer: int, **options: Any) -> dict[str, Any]:
    given = {"model": str(folder), "device": "cpu", "max_running": 4, "num_readers": 2, **options}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.memory_run", json.dumps([given, num_prompt, num_answer])],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "max_running", "device_memory", "kv_memory", "num_prompt", "num_answer"),
    [
        ("olmoe", 4, "160MiB", "40MiB", 1200, 16),
        pytest.param("olmoe", 4, "110MiB", "20MiB", 600, 16, marks=pytest.mark.long),
        ("olmoe", 64, "204MiB", "60MiB", 100, 16),
        pytest.param("switch", 4, "260MiB", "60MiB", 600, 100, marks=pytest.mark.long),
        ("switch", 4, "200MiB", "40MiB", 600, 20),
    ],
)
def test_the_peak_stays_within_the_budget_with_all_requests_side_by_side(
    models: dict[str, Path],
    name: str,
    max_running: int,
    device_memory: str,
    kv_memory: str,
    num_prompt: int,
    num_answer: int,
) -> None:
    limit: dict[str, Any] = {"max_model_len": 700} if name == "switch" else {}
    limit |= {"device_memory": device_memory, "kv_memory": kv_memory, "max_running": max_running}
    found = measure(models[name], num_prompt, num_answer, **limit)
    assert found["total"] <= found["budget_bytes"]
    assert found["grown"] <= found["budget_bytes"], found
    # The plan is no mere bound: without room for caches or workspace the test would fail.
    spare = found["budget_bytes"] - found["grown"]
    assert spare < min(found["kv_bytes"], found["workspace_bytes"]), found
