"""Offloading on an accelerator: whatever moved, and from where, the numbers are the same to the bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.conftest import QuantisedCheckpoints, TinyCheckpoints
from tests.support.runs import Prompts, Run, run, smallest_budget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]
FAMILIES = ("olmoe", "mixtral", "gpt_oss", "deepseek_v3", "smallthinker", "switch_transformers")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = Prompts.random(seed=30)
on_device = partial(run, device="auto")
HOST_MEMORY = ("100%", "50%", "0")
LINKS = {"disk_to_host", "host_to_device"}
"""What bytes go over: whatever an accelerator gets passes through host memory."""


@pytest.fixture(scope="module")
def resident(tiny: TinyCheckpoints) -> dict[tuple[str, torch.dtype], Run]:
    """With every expert in device memory, each model once."""
    return {
        (family, dtype): on_device(tiny(family, dtype), PROMPTS, device_memory="100%", host_memory="0")
        for family in FAMILIES
        for dtype in DTYPES
    }


@pytest.mark.parametrize("budget", ["smallest", "30%", "60%"])
@pytest.mark.parametrize("host_memory", HOST_MEMORY)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_budget_changes_no_bit_on_the_accelerator(
    tiny: TinyCheckpoints,
    resident: dict[tuple[str, torch.dtype], Run],
    family: str,
    dtype: torch.dtype,
    host_memory: str,
    budget: str,
) -> None:
    folder = tiny(family, dtype)
    memory = smallest_budget(folder, "auto") if budget == "smallest" else budget
    found = on_device(folder, PROMPTS, device_memory=memory, host_memory=host_memory)
    assert found.logits_one.device.type != "cpu"
    assert set(found.stats.transfer_bytes) == LINKS
    assert found.num_slots < resident[family, dtype].num_slots
    found.same_as(resident[family, dtype])


@pytest.mark.parametrize("host_memory", HOST_MEMORY)
def test_copies_and_compute_may_overlap_a_hundred_times(tiny: TinyCheckpoints, host_memory: str) -> None:
    """A slot given on while kernels still read it, or used before its bytes came, would show here."""
    folder = tiny("olmoe", torch.bfloat16)
    whole = on_device(folder, PROMPTS, num_tokens=100, device_memory="100%", host_memory="0")
    memory = smallest_budget(folder, "auto")
    found = on_device(folder, PROMPTS, num_tokens=100, device_memory=memory, host_memory=host_memory)
    assert found.stats.num_misses > 100
    found.same_as(whole)


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_the_accelerator_computes_what_the_cpu_does(tiny: TinyCheckpoints, family: str) -> None:
    folder = tiny(family, torch.float32)
    here = on_device(folder, PROMPTS, device_memory="30%")
    there = run(folder, PROMPTS, device_memory="30%", device="cpu")
    torch.testing.assert_close(here.logits_one.cpu(), there.logits_one, rtol=1e-3, atol=1e-3)


def test_fewer_slots_take_that_much_less_device_memory(tiny: TinyCheckpoints) -> None:
    folder = tiny("olmoe", torch.bfloat16)
    backend = torch.get_device_module(torch.accelerator.current_accelerator())
    slots, peaks = [], []
    for budget in ("100%", "25%"):
        backend.empty_cache()
        backend.reset_peak_memory_stats()
        slots.append(on_device(folder, PROMPTS, device_memory=budget).num_slots)
        peaks.append(backend.max_memory_allocated())
    expert_bytes = 3 * 48 * 64 * 2
    assert peaks[0] - peaks[1] >= (slots[0] - slots[1]) * expert_bytes


@pytest.mark.parametrize("host_memory", HOST_MEMORY)
@pytest.mark.parametrize("kind", ["fp8 deepseek odd", "mxfp4 gpt_oss"])
def test_quantised_experts_are_expanded_on_the_accelerator(
    quantised: QuantisedCheckpoints, kind: str, host_memory: str
) -> None:
    folder = quantised(kind)
    whole = on_device(folder, PROMPTS, device_memory="100%", host_memory="0")
    found = on_device(folder, PROMPTS, device_memory=smallest_budget(folder, "auto"), host_memory=host_memory)
    assert found.logits_one.device.type != "cpu"
    found.same_as(whole)
