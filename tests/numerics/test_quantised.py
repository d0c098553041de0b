"""Quantised checkpoints: the numbers are transformers' own, and the same to the bit whatever is resident."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import FineGrainedFP8Config, Mxfp4Config

from pgmoe.config import EngineConfig
from pgmoe.experts.expander import Expander
from pgmoe.layout import ExpertLayer
from pgmoe.models.loader import read_plan
from pgmoe.selftest import read_plainly, run_selftest
from tests.conftest import QuantisedCheckpoints
from tests.support.quantised import FP8_KINDS, KINDS, save_dequantised
from tests.support.runs import Prompts, Run, all_logits, run, smallest_budget
from tests.support.ties import choose_the_first

PROMPTS = Prompts.random(seed=31)
CPU = torch.device("cpu")
LOADABLE = ("fp8 deepseek even", "fp8 qwen3", "mxfp4 gpt_oss")
"""Of sizes that transformers dequantises itself."""
Resident = Callable[[str], Run]


@pytest.fixture(scope="module", autouse=True)
def _choosing_the_first() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        choose_the_first(patch)
        yield


@pytest.fixture(scope="module")
def resident(quantised: QuantisedCheckpoints) -> Resident:
    """`resident(kind)`: the run with all experts resident, computed once."""
    done: dict[str, Run] = {}

    def get(kind: str) -> Run:
        if kind not in done:
            done[kind] = run(quantised(kind), PROMPTS, device_memory="100%")
        return done[kind]

    return get


def their_model(folder: Path, kind: str) -> transformers.PreTrainedModel:
    """transformers' own model of a quantised folder, dequantised as it loads it."""
    config = (FineGrainedFP8Config if kind.startswith("fp8") else Mxfp4Config)(dequantize=True)
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16, experts_implementation="eager"
    )
    return model


def check_weights(layer: ExpertLayer, module: torch.nn.Module) -> None:
    """All experts of a layer, expanded, are transformers' own."""
    expander = Expander((layer,), CPU)
    for expert in range(layer.num_experts):
        for name, weight in expander.weights(layer, read_plainly(layer, expert, CPU)).items():
            theirs = module.get_parameter(name.replace("up", "gate_up_proj").replace("down", "down_proj"))[
                expert
            ]
            assert torch.equal(weight, theirs.T if module.is_transposed and weight.dim() == 2 else theirs)


@pytest.mark.parametrize("kind", LOADABLE)
def test_weights_and_logits_are_those_of_transformers_own_dequantised_model(
    quantised: QuantisedCheckpoints, resident: Resident, kind: str
) -> None:
    model = their_model(quantised(kind), kind)
    for layer in read_plan(str(quantised(kind))).layers:
        check_weights(layer, model.get_submodule(layer.name))
    assert torch.equal(resident(kind).logits_one, all_logits(model, [PROMPTS.one]))
    assert torch.equal(resident(kind).logits_two, all_logits(model, PROMPTS.two))


@pytest.mark.parametrize("kind", FP8_KINDS)
def test_logits_are_those_of_the_same_weights_saved_in_bfloat16(
    quantised: QuantisedCheckpoints, resident: Resident, tmp_path: Path, kind: str
) -> None:
    folder = save_dequantised(quantised(kind), tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, experts_implementation="eager"
    )
    assert torch.equal(resident(kind).logits_one, all_logits(model, [PROMPTS.one]))
    assert torch.equal(resident(kind).logits_two, all_logits(model, PROMPTS.two))


BUDGETS = [
    *((kind, "smallest") for kind in KINDS),
    *((kind, budget) for kind in ("fp8 deepseek odd", "mxfp4 gpt_oss") for budget in ("30%", "60%")),
]


@pytest.mark.parametrize(("kind", "budget"), BUDGETS)
def test_a_smaller_budget_changes_no_bit(
    quantised: QuantisedCheckpoints, resident: Resident, kind: str, budget: str
) -> None:
    folder = quantised(kind)
    found = run(folder, PROMPTS, device_memory=smallest_budget(folder) if budget == "smallest" else budget)
    assert found.num_slots < resident(kind).num_slots
    assert found.stats.evictions.total() > 0
    found.same_as(resident(kind))


@pytest.mark.parametrize("kind", ["fp8 deepseek in part", "mxfp4 gpt_oss"])
@pytest.mark.parametrize("host_memory", ["50%", "100%"])
def test_experts_from_host_memory_change_no_bit(
    quantised: QuantisedCheckpoints, resident: Resident, kind: str, host_memory: str
) -> None:
    found = run(quantised(kind), PROMPTS, device_memory="30%", host_memory=host_memory)
    assert "host_to_device" in found.stats.transfer_bytes
    found.same_as(resident(kind))


@pytest.mark.parametrize("kind", ["fp8 deepseek odd", "fp8 mixtral", "mxfp4 gpt_oss"])
def test_a_sharded_checkpoint_changes_no_bit(
    quantised: QuantisedCheckpoints, resident: Resident, kind: str
) -> None:
    folder = quantised(kind, "60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    run(folder, PROMPTS, device_memory="30%").same_as(resident(kind))


@pytest.mark.parametrize("kind", ["fp8 deepseek odd", "mxfp4 gpt_oss"])
def test_the_self_test_passes(quantised: QuantisedCheckpoints, kind: str) -> None:
    config = EngineConfig.parse({"model": str(quantised(kind)), "device": "cpu", "device_memory": "30%"})
    report = run_selftest(config, 4)
    assert report.passed
    assert report.resident_equal is True
    assert report.num_experts_checked > 0
