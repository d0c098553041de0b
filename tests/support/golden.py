"""Golden outputs, and models rebuilt from the weights that came with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from pgmoe.models.socket import ExpertSocket
from tests.support.routed import plug_in_memory

FOLDER = Path(__file__).parents[1] / "numerics" / "golden"
GENERATION = {"do_sample": False, "num_beams": 1, "no_repeat_ngram_size": 1}


@dataclass(frozen=True)
class Golden:
    """One file of tests/numerics/golden."""

    config: dict[str, Any]
    cases: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, family: str) -> Golden:
        with safe_open(FOLDER / f"{family}.safetensors", framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return cls(json.loads(metadata["config"]), json.loads(metadata["cases"]), tensors)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors called `prefix.…`, without the prefix."""
        return {
            k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")
        }

    def rebuild(
        self,
        case: str,
        model_class: type[PreTrainedModel],
        empty: Callable[[PreTrainedModel], None],
        sockets: Callable[[PreTrainedModel], Sequence[ExpertSocket]],
    ) -> PreTrainedModel:
        """The model of a case with our blocks, its experts in memory. Every weight finds its place."""
        config = model_class.config_class(**(self.config | self.cases[case]))
        model = model_class(config).eval()
        empty(model)
        weights = self.group("weights")
        if config.tie_word_embeddings:
            del weights["lm_head.weight"]
        places = sockets(model)
        plug_in_memory(places, weights)
        of_experts = {k.format(e) for s in places for k in s.keys.values() for e in range(s.num_experts)}
        report = model.load_state_dict(
            {k: v for k, v in weights.items() if k not in of_experts}, strict=False
        )
        assert not report.unexpected_keys
        model.tie_weights()
        tied = model.get_input_embeddings().weight
        parameters = dict(model.named_parameters(remove_duplicate=False))
        assert all(parameters[k] is tied for k in report.missing_keys), report.missing_keys
        return model


@torch.no_grad()
def check(golden: Golden, case: str, model: PreTrainedModel) -> None:
    """The model gives the logits of this case within 1e-5, and its tokens exactly."""
    inputs, expected = golden.group("inputs"), golden.group(case)
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-5, atol=1e-5)
    num_new = expected["generated"].shape[1] - 1
    generated = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        **GENERATION,
    )
    assert generated.tolist() == expected["generated"].tolist()
