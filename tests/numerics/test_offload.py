"""The heart of the suite: whatever the budget, the tier or the files, the numbers are the same to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, MixtralConfig

from pgmoe.engine.llm import LLM
from pgmoe.engine.memory_plan import ExpertShape
from pgmoe.errors import WeightReadError
from pgmoe.models.loader import read_plan
from pgmoe.request import SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import (
    DECODER,
    ENCODER_DECODER_FAMILIES,
    FAMILIES,
    tiny_model,
)
from tests.support.damage import WEIGHTS, Original, cut_experts, edit_header
from tests.support.mixtures import first_difference
from tests.support.runs import Prompts, Run, all_logits, run, smallest_budget
from tests.support.ties import choose_the_first

DTYPES = (torch.float32, torch.bfloat16)
PROMPTS = Prompts.random(seed=20)
Resident = Callable[[str, torch.dtype], Run]


def models_of(families: Iterable[str]) -> pytest.MarkDecorator:
    """A test of each of these families in each type."""
    models = [(family, dtype) for family in families for dtype in DTYPES]
    ids = [f"{family}-{str(dtype).removeprefix('torch.')}" for family, dtype in models]
    return pytest.mark.parametrize(("family", "dtype"), models, ids=ids)


every_model = models_of(FAMILIES)
some_models = models_of(["mixtral", "gpt_oss", "deepseek_v3", "switch_transformers", "nllb_moe"])
"""Of the forms in which experts are stored: apart, fused, transposed, with biases, by names of their own."""


@pytest.fixture(scope="module")
def resident(tiny: TinyCheckpoints) -> Resident:
    """`resident(family, dtype)`: the run with all experts resident, computed once."""
    done: dict[tuple[str, torch.dtype], Run] = {}

    def get(family: str, dtype: torch.dtype) -> Run:
        if (family, dtype) not in done:
            done[family, dtype] = run(tiny(family, dtype), PROMPTS, device_memory="100%")
        return done[family, dtype]

    return get


@every_model
@pytest.mark.parametrize("budget", ["smallest", "30%"])
def test_a_smaller_budget_changes_no_bit(
    tiny: TinyCheckpoints, resident: Resident, family: str, dtype: torch.dtype, budget: str
) -> None:
    folder, whole = tiny(family, dtype), resident(family, dtype)
    options = {"device_memory": smallest_budget(folder) if budget == "smallest" else budget}
    found = run(folder, PROMPTS, **options)
    assert found.num_slots < whole.num_slots
    assert found.stats.evictions.total() > 0
    found.same_as(whole)


def test_every_number_of_slots_from_the_smallest_to_all_gives_the_same_bits(
    tiny: TinyCheckpoints, resident: Resident
) -> None:
    folder, whole = tiny("mixtral", torch.bfloat16), resident("mixtral", torch.bfloat16)
    plan = read_plan(str(folder))
    shape = ExpertShape.of(plan.layers, plan.loaded_bytes(torch.device("cpu")))
    for slots in range(shape.top_k, shape.num_experts + 1):
        share = min(100, 100 * slots / shape.num_experts + 0.01)
        found = run(folder, PROMPTS, device_memory=f"{share:.2f}%")
        assert found.num_slots == slots
        found.same_as(whole)


@every_model
def test_experts_from_host_memory_change_no_bit(
    tiny: TinyCheckpoints, resident: Resident, family: str, dtype: torch.dtype
) -> None:
    found = run(tiny(family, dtype), PROMPTS, device_memory="30%", host_memory="100%")
    assert set(found.stats.transfer_bytes) == {"disk_to_host", "host_to_device"}
    found.same_as(resident(family, dtype))


@some_models
def test_some_experts_from_host_memory_and_some_from_disk_change_no_bit(
    tiny: TinyCheckpoints, resident: Resident, family: str, dtype: torch.dtype
) -> None:
    found = run(tiny(family, dtype), PROMPTS, device_memory="30%", host_memory="50%")
    assert set(found.stats.transfer_bytes) == {"disk_to_host", "host_to_device"}
    found.same_as(resident(family, dtype))


@some_models
def test_reads_through_the_page_cache_change_no_bit(
    tiny: TinyCheckpoints, resident: Resident, family: str, dtype: torch.dtype
) -> None:
    run(tiny(family, dtype), PROMPTS, device_memory="30%", direct_io=False).same_as(resident(family, dtype))


@some_models
def test_a_sharded_checkpoint_changes_no_bit(
    tiny: TinyCheckpoints, resident: Resident, family: str, dtype: torch.dtype
) -> None:
    folder = tiny(family, dtype, "200KB" if dtype == torch.float32 else "100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    run(folder, PROMPTS, device_memory="30%").same_as(resident(family, dtype))


TRANSFORMERS_OWN = [p for p in FAMILIES if p not in ENCODER_DECODER_FAMILIES]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", TRANSFORMERS_OWN)
def test_offloaded_equals_transformers_own_model_to_the_bit(
    tiny: TinyCheckpoints, family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_the_first(monkeypatch)
    # Switch and NLLB-MoE have golden outputs of a transformers release whose blocks are right.
    folder = tiny(family, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager"
    )
    found = run(folder, PROMPTS, device_memory="30%")
    assert torch.equal(found.logits_one, all_logits(model, [PROMPTS.one]))
    assert torch.equal(found.logits_two, all_logits(model, PROMPTS.two))
    greedy = GenerationConfig(
        max_new_tokens=len(found.token_ids),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    # The engine's steps attend over pages, by torch's fused attention: the same but for how it is rounded.
    answer = model.generate(torch.tensor([PROMPTS.one]), generation_config=greedy)
    expected = answer.sequences[0, len(PROMPTS.one) :].tolist()
    alike = first_difference(found.token_ids, expected)
    assert alike is None or dtype == torch.bfloat16
    of_each = len(found.logprobs) // len(found.token_ids)
    num_alike = of_each * ((len(expected) if alike is None else alike) + 1)
    assert list(found.logprobs)[:num_alike] == pytest.approx(
        reported_logprobs(answer.logits)[:num_alike],
        abs=1e-4 if dtype == torch.float32 else 0.5,  # a router may choose otherwise
    )


def reported_logprobs(logits: tuple[Tensor, ...]) -> list[float]:
    """What a greedy answer with `logprobs=5` reports: the chosen token's, then the five likeliest."""
    steps = [step[0].float().log_softmax(-1) for step in logits]
    return [v for s in steps for v in (s.max().item(), *s.topk(5).values.tolist())]


@pytest.mark.parametrize("family", ENCODER_DECODER_FAMILIES)
def test_an_encoder_decoder_answers_prompts_of_any_length_the_same_with_few_slots(
    tiny: TinyCheckpoints, family: str
) -> None:
    folder = tiny(family, torch.float32)
    prompts = [PROMPTS.one, PROMPTS.two[0], PROMPTS.one[:1]]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=3)
    with (
        LLM(str(folder), device="cpu") as resident,
        LLM(str(folder), device="cpu", device_memory=smallest_budget(folder)) as offloaded,
    ):
        expected = resident.generate(prompts, params)
        found = offloaded.generate(prompts, params)
    assert [c.logprobs for c in found] == [c.logprobs for c in expected]
    assert all(len(c.token_ids) == 8 for c in found)
    assert len({c.token_ids for c in found}) == len(prompts)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral in bfloat16 of a size at which one row and several take kernels that round differently."""
    config = MixtralConfig(
        **{**DECODER, "hidden_size": 256, "num_hidden_layers": 2},
        intermediate_size=512,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(config, torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("budget", ["13%", "50%"])
def test_single_tokens_of_a_wider_model_change_no_bit_with_the_budget(wide: Path, budget: str) -> None:
    whole = run(wide, PROMPTS, num_tokens=24, device_memory="100%")
    found = run(wide, PROMPTS, num_tokens=24, device_memory=budget)
    assert found.stats.evictions.total() > 0
    assert len(set(found.token_ids)) > 8
    found.same_as(whole)


@pytest.mark.parametrize("padding", range(4))
def test_tensors_at_any_byte_of_a_file_change_no_bit(
    tiny: TinyCheckpoints, resident: Resident, tmp_path: Path, padding: int
) -> None:
    """safetensors asks for no alignment; a header that is a few bytes longer shifts every tensor."""
    folder = shutil.copytree(tiny("mixtral", torch.bfloat16), tmp_path / "model")
    edit_header(folder, lambda header: header.update(__metadata__={"format": "pt", "x": "x" * padding}))
    run(folder, PROMPTS, device_memory="30%").same_as(resident("mixtral", torch.bfloat16))


def test_after_a_failed_read_the_next_answer_is_right(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen3_moe"), tmp_path / "model")
    whole = Original(folder / WEIGHTS)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=3)
    with LLM(str(folder), device="cpu", device_memory="10%") as llm:
        (expected,) = llm.generate([PROMPTS.one], params)
        cut_experts(folder)
        with pytest.raises(WeightReadError, match=WEIGHTS):
            llm.generate([PROMPTS.one], params)
        whole.put_back()
        (found,) = llm.generate([PROMPTS.one], params)
    assert found.logprobs == expected.logprobs
