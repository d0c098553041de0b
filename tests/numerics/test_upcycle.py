"""An upcycled model computes what the dense one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from pgmoe.training.upcycle import upcycle
from tests.support.dense import LLAMA, save_dense

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama with tied embeddings": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama 3 rope, wide heads": transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE, head_dim=24),
    "llama, other activation and norm": transformers.LlamaConfig(
        **LLAMA, hidden_act="gelu", rms_norm_eps=0.1
    ),
    "mistral with a sliding window": transformers.MistralConfig(**LLAMA, sliding_window=8),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(("num_experts", "top_k"), [(5, 2), (3, 1)])
def test_upcycled_logits_equal_the_dense_models(
    tmp_path: Path, config: PretrainedConfig, num_experts: int, top_k: int
) -> None:
    source = save_dense(tmp_path / "dense", config)
    done = upcycle(str(source), tmp_path / "moe", num_experts=num_experts, top_k=top_k)
    input_ids = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    dense, moe = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, done.folder))
    with torch.no_grad():
        expected, actual = dense(input_ids).logits, moe(input_ids).logits
    assert moe.config.model_type == "mixtral"
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
