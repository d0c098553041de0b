"""Write the golden outputs of Switch Transformers and NLLB-MoE, from the release whose blocks are right.

Run it in an environment of its own, since the project needs a later transformers::

    python -m venv golden-env
    golden-env/bin/pip install transformers==4.57.6 torch==2.13.0 safetensors
    golden-env/bin/python tests/numerics/golden/make.py

Each file holds one model's weights, the inputs, and for each case (some options changed) the logits and
the tokens of a greedy generation that says no token twice. The metadata hold the config and the cases'
options as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

RELEASE = "4.57.6"
VOCABULARY, WIDTH, EXPERTS, PAD = 64, 16, 4, 0
NEW_TOKENS = 12

SWITCH = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_experts": EXPERTS,
    "expert_capacity": 64,
    "decoder_start_token_id": PAD,
    "pad_token_id": PAD,
    "eos_token_id": 1,
    "router_bias": True,
}
NLLB = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "num_experts": EXPERTS,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "pad_token_id": PAD,
    "bos_token_id": 3,
    "eos_token_id": 1,
}
SWITCH_CASES: dict[str, dict[str, Any]] = {
    "roomy": {},
    "drops": {"expert_capacity": 2},
    "untied": {"tie_word_embeddings": False},
}
NLLB_CASES: dict[str, dict[str, Any]] = {
    "roomy": {},
    "fraction": {"moe_eval_capacity_token_fraction": 0.25},
    "strongest_first": {
        "moe_eval_capacity_token_fraction": 0.25,
        "batch_prioritized_routing": True,
        "normalize_router_prob_before_dropping": True,
    },
    "fixed": {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 3, "moe_token_dropout": 0.0},
    "padding_routed": {"router_ignore_padding_tokens": True, "moe_eval_capacity_token_fraction": 0.5},
}


def draw_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights with a wide spread, every tied one once; the output layer also apart, for untied cases."""
    generator = torch.Generator().manual_seed(0)
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(tied):
            spread = 0.05 if name.endswith("shared.weight") else 0.4
            offset = 1.0 if name.endswith("norm.weight") else 0.0
            weights[name] = offset + spread * torch.randn(tensor.shape, generator=generator)
    return weights


def draw_inputs() -> dict[str, Tensor]:
    """Two rows, the second one padded."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCABULARY, (2, 14), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0
    return {
        "input_ids": input_ids.masked_fill(mask == 0, PAD),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(4, VOCABULARY, (2, 10), generator=generator),
    }


def build(model_class: Any, options: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    """A model with these weights; the tied ones are filled through `shared`."""
    model = model_class(model_class.config_class(**options)).eval()
    untied = options.get("tie_word_embeddings") is False
    known = {k: v for k, v in weights.items() if untied or k != "lm_head.weight"}
    unfilled = model.load_state_dict(known, strict=False)
    assert not unfilled.unexpected_keys, unfilled
    assert all(k.endswith(("embed_tokens.weight", "lm_head.weight")) for k in unfilled.missing_keys), unfilled
    return model


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of one full forward pass, and greedy tokens."""
    generated = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        no_repeat_ngram_size=1,  # or an untrained model says one token over and over
    )
    return {"logits": model(**inputs).logits, "generated": generated}


def write(
    folder: Path, family: str, model_class: Any, options: dict[str, Any], cases: dict[str, Any]
) -> None:
    """Write one family's file."""
    weights = draw_weights(model_class(model_class.config_class(**options)))
    inputs = draw_inputs()
    tensors = {f"weights.{k}": v for k, v in weights.items()} | {f"inputs.{k}": v for k, v in inputs.items()}
    for case, changes in cases.items():
        outputs = run(build(model_class, options | changes, weights), inputs)
        tensors |= {f"{case}.{k}": v.contiguous() for k, v in outputs.items()}
        print(family, case, outputs["generated"].tolist())
    for case in cases:
        assert case == "roomy" or not torch.equal(tensors[f"{case}.logits"], tensors["roomy.logits"]), case
    metadata = {"transformers": RELEASE, "config": json.dumps(options), "cases": json.dumps(cases)}
    save_file(tensors, folder / f"{family}.safetensors", metadata)


def main() -> None:
    """Write both files beside this script."""
    assert transformers.__version__ == RELEASE, (
        f"needs transformers {RELEASE}, not {transformers.__version__}"
    )
    folder = Path(__file__).parent
    switch = transformers.SwitchTransformersForConditionalGeneration
    write(folder, "switch_transformers", switch, SWITCH, SWITCH_CASES)
    write(folder, "nllb_moe", transformers.NllbMoeForConditionalGeneration, NLLB, NLLB_CASES)


if __name__ == "__main__":
    main()
