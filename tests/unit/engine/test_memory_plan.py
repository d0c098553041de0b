from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.engine.kv_size import KvSize
from pgmoe.engine.memory_plan import HOST_SHARE, ExpertShape, plan_host_experts, plan_memory, smallest_budget
from pgmoe.engine.needs import LEAST_TOKENS, USUAL_TOKENS, Needs
from pgmoe.errors import BudgetTooSmall, ConfigError
from pgmoe.units import parse_bytes

MIB = 2**20
SHAPE = ExpertShape(num_experts=24, slot_bytes=MIB, top_k=2, dense_bytes=10 * MIB)

shapes = st.builds(
    ExpertShape,
    num_experts=st.integers(9, 20_000),
    slot_bytes=st.integers(1, 40_000).map(lambda pages: 4096 * pages),
    top_k=st.integers(1, 8),
    dense_bytes=st.integers(0, 2**36),
)


KIB = 2**10
KV = KvSize(token_bytes=KIB)


def step_bytes(num_tokens: int) -> int:
    return 100 * num_tokens


NEEDS = Needs(kv=KV, workspace=step_bytes, max_running=4, max_model_len=8192, prefill_chunk=512)
SMALLEST = 12 * MIB + LEAST_TOKENS * (KIB + 100)

sizes = st.builds(
    KvSize,
    token_bytes=st.integers(1, 2**20),
    fixed_bytes=st.integers(0, 2**24),
    keeps_prompt=st.booleans(),
)
all_needs = st.builds(
    Needs,
    kv=sizes,
    workspace=st.integers(0, 10**6).map(lambda per_token: lambda num_tokens: per_token * num_tokens),
    max_running=st.integers(1, 9),
    max_model_len=st.integers(2, 10**5),
    prefill_chunk=st.just(512),
)


@pytest.mark.parametrize(
    ("budget", "slots"), [("100%", 24), ("50%", 12), ("8.4%", 2), ("12.49%", 2), ("12.5%", 3)]
)
def test_a_share_buys_slots_beside_everything_else(budget: str, slots: int) -> None:
    plan = plan_memory(budget, "auto", SHAPE, NEEDS)
    assert plan.num_slots == slots
    assert (plan.longest, plan.limits_length) == (8192, False)
    assert plan.kv_bytes == 4 * USUAL_TOKENS * KIB
    assert plan.num_blocks == 4 * USUAL_TOKENS // 16


@pytest.mark.parametrize(
    ("budget", "kv_tokens"),
    [
        ("1TiB", 4 * 2048),
        # Dense weights and two experts take 12 MiB, and four sequences 8 MiB of the 32 MiB that are left.
        (44 * MIB + step_bytes(8192), 4 * 2048),
        (44 * MIB + step_bytes(8192) - 1, 2 * 2048),
        (28 * MIB + step_bytes(4096) - 1, 2048),
        (13 * MIB + step_bytes(256), 256),
        (SMALLEST, 256),
    ],
)
def test_the_cache_is_halved_until_it_is_a_quarter_of_what_is_left(budget: str | int, kv_tokens: int) -> None:
    plan = plan_memory(budget, "auto", SHAPE, NEEDS)
    assert (plan.kv_bytes, plan.longest) == (kv_tokens * KIB, kv_tokens)
    assert plan.workspace_bytes == step_bytes(kv_tokens)


@given(shapes, all_needs, st.integers(0, 2**40), st.sampled_from(["auto", 2**20, "1GiB"]))
def test_all_parts_together_stay_within_the_budget_and_slots_take_what_is_left(
    shape: ExpertShape, needs: Needs, budget: int, kv_memory: str | int
) -> None:
    least = needs.kv.sequence_bytes(min(needs.max_model_len, LEAST_TOKENS))
    if kv_memory != "auto" and least > parse_bytes(kv_memory):
        with pytest.raises(BudgetTooSmall, match="kv_memory"):
            plan_memory(budget, kv_memory, shape, needs)
        return
    smallest = smallest_budget(shape, needs)
    if kv_memory != "auto":
        smallest = shape.smallest_bytes + needs.within(kv_memory).total_bytes
    budget += smallest
    plan = plan_memory(budget, kv_memory, shape, needs)
    assert plan.total_bytes <= budget
    assert shape.top_k <= plan.num_slots <= shape.num_experts
    assert plan.num_slots == shape.num_experts or plan.total_bytes + shape.slot_bytes > budget
    assert plan.kv.sequence_bytes(plan.longest) <= plan.kv_bytes
    assert plan.longest >= min(needs.max_model_len, LEAST_TOKENS)
    assert plan.kv.request_blocks(plan.longest, plan.longest) <= plan.num_blocks


@pytest.mark.parametrize("budget", ["8.3%", "0%", "0", 0, "5MiB", SMALLEST - 1])
def test_a_budget_too_small_names_the_smallest_that_works_and_its_parts(budget: str | int) -> None:
    with pytest.raises(BudgetTooSmall) as error:
        plan_memory(budget, "auto", SHAPE, NEEDS)
    assert error.value.minimum_bytes == SMALLEST == smallest_budget(SHAPE, NEEDS)
    assert f"device_memory {budget!r}" in str(error.value)
    for text in ("works is 13MiB", "10.0 MiB dense", "256.0 KiB KV", "25.0 KiB workspace", "or 8.4% of the"):
        assert text in str(error.value)


@given(shapes, all_needs, st.booleans())
def test_every_budget_that_is_named_as_the_smallest_works(
    shape: ExpertShape, needs: Needs, explicit: bool
) -> None:
    kv_memory = needs.kv.sequence_bytes(needs.max_model_len) if explicit else "auto"
    with pytest.raises(BudgetTooSmall) as error:
        plan_memory("0", kv_memory, shape, needs)
    named = re.search(r"works is (\d+MiB) .* or ([\d.]+%) of", str(error.value))
    assert named is not None
    assert plan_memory(error.value.minimum_bytes, kv_memory, shape, needs).num_slots == shape.top_k
    assert plan_memory(named[1], kv_memory, shape, needs).num_slots >= shape.top_k
    assert plan_memory(named[2], kv_memory, shape, needs).num_slots >= shape.top_k
    with pytest.raises(BudgetTooSmall):
        plan_memory(error.value.minimum_bytes - 1, kv_memory, shape, needs)


def test_given_bytes_limit_the_cache_beside_a_share_too_but_not_beyond_what_can_be_used() -> None:
    plan = plan_memory("50%", "1MiB", SHAPE, NEEDS)
    assert (plan.num_slots, plan.kv_bytes, plan.longest) == (12, MIB, 1024)
    assert plan.limits_length
    plan = plan_memory("1GiB", "500MiB", SHAPE, NEEDS)
    assert (plan.kv_bytes, plan.longest) == (4 * 8192 * KIB, 8192)
    assert not plan.limits_length


def test_a_cache_too_small_for_a_short_sequence_is_refused() -> None:
    with pytest.raises(BudgetTooSmall, match=r"kv_memory '255KiB' .* 256 tokens; give at least") as error:
        plan_memory("100%", "255KiB", SHAPE, NEEDS)
    assert error.value.minimum_bytes == 256 * KIB
    plan_memory("100%", 256 * KIB, SHAPE, NEEDS)


@given(shapes, all_needs)
def test_all_experts_fit_into_all_of_them(shape: ExpertShape, needs: Needs) -> None:
    assert plan_memory("100%", "auto", shape, needs).num_slots == shape.num_experts


def test_the_plan_is_told_part_by_part() -> None:
    text = plan_memory("600MiB", "auto", SHAPE, NEEDS).text()
    for line in (
        r"dense weights +10\.0 MiB",
        r"KV cache +8\.0 MiB  512 blocks, for 4 sequences of 2048 tokens",
        r"workspace +800\.0 KiB  sequences of up to 8192 tokens, prompts 512 at once",
        r"expert slots +24\.0 MiB  24 of 24 experts",
        r"together +42\.8 MiB  of device_memory 600\.0 MiB",
    ):
        assert re.search(line, text), (line, text)


def test_beside_a_share_the_longest_sequence_fits_at_least() -> None:
    needs = replace(NEEDS, max_model_len=4 * USUAL_TOKENS + 1)
    plan = plan_memory("50%", "auto", SHAPE, needs)
    assert plan.longest == 4 * USUAL_TOKENS + 1
    assert plan.num_blocks == 4 * USUAL_TOKENS // 16 + 1


def test_states_of_constant_size_count_as_blocks() -> None:
    assert KvSize(KIB, fixed_bytes=40 * KIB).request_blocks(1, 17) == 3 + 2
    assert KvSize(0, fixed_bytes=64 * KIB).request_blocks(1, 17) == 64 + 2
    assert KvSize(KIB, keeps_prompt=True).request_blocks(33, 1) == 3 + 1


@pytest.mark.parametrize("budget", ["", "much", "-1", "101%", "5XB", -1, "auto", "50 % %"])
def test_nonsense_is_refused(budget: str | int) -> None:
    with pytest.raises(ConfigError):
        plan_memory(budget, "auto", SHAPE, NEEDS)
    if budget != "auto":
        with pytest.raises(ConfigError):
            plan_memory("100%", budget, SHAPE, NEEDS)
        with pytest.raises(ConfigError):
            plan_host_experts(budget, SHAPE, accelerator=True, free_ram=2**40)


@pytest.mark.parametrize(
    ("budget", "held"),
    [
        ("0", 0),
        (0, 0),
        ("0%", 0),
        ("0MiB", 0),
        ("1MiB", 1),
        (2 * MIB - 1, 1),
        ("4.2%", 1),
        ("50%", 12),
        ("99.9%", 23),
        ("23.99MiB", 23),
        ("24MiB", 24),
        ("100%", 24),
        ("1GiB", 24),
    ],
)
def test_host_memory_holds_whole_experts_and_never_more_than_all(budget: str | int, held: int) -> None:
    for accelerator in (False, True):
        assert plan_host_experts(budget, SHAPE, accelerator=accelerator, free_ram=24 * MIB) == held


@pytest.mark.parametrize("budget", [1, MIB - 1, "4KiB", "4.1%", "0.01%"])
def test_host_memory_for_no_expert_names_the_smallest_that_holds_one(budget: str | int) -> None:
    with pytest.raises(BudgetTooSmall, match=r"smallest .* is 1MiB, or 4\.2% .*; give 0") as error:
        plan_host_experts(budget, SHAPE, accelerator=False, free_ram=2**40)
    assert f"host_memory {budget!r}" in str(error.value)
    assert error.value.minimum_bytes == MIB


@given(shapes)
def test_every_host_memory_that_is_named_as_the_smallest_holds_an_expert(shape: ExpertShape) -> None:
    with pytest.raises(BudgetTooSmall) as error:
        plan_host_experts(shape.slot_bytes - 1, shape, accelerator=False, free_ram=2**60)
    named = re.search(r" is (\d+MiB), or ([\d.]+%) of", str(error.value))
    assert named is not None
    for budget in (error.value.minimum_bytes, named[1], named[2]):
        assert plan_host_experts(budget, shape, accelerator=False, free_ram=2**60) >= 1


@pytest.mark.parametrize(("budget", "held"), [("100%", 24), ("50%", 12), ("11MiB", 11), ("1GiB", 24)])
def test_more_host_memory_than_is_free_is_refused(budget: str, held: int) -> None:
    free_ram = held * MIB - 1
    with pytest.raises(ConfigError, match=rf"{budget}': {held} experts take {held}\.0 MiB, .*; give less"):
        plan_host_experts(budget, SHAPE, accelerator=False, free_ram=free_ram)
    assert plan_host_experts(budget, SHAPE, accelerator=False, free_ram=free_ram + 1) == held


def test_auto_holds_what_a_share_of_the_free_ram_does_on_an_accelerator_and_nothing_on_a_cpu() -> None:
    enough = int(SHAPE.expert_bytes / HOST_SHARE) + 1
    for free_ram, held in [(2**40, 24), (enough, 24), (enough - 2, 23), (enough // 2, 12), (MIB, 0)]:
        assert plan_host_experts("auto", SHAPE, accelerator=True, free_ram=free_ram) == held
        assert plan_host_experts("auto", SHAPE, accelerator=False, free_ram=free_ram) == 0
