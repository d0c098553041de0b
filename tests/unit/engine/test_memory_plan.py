from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.engine.memory_plan import HOST_SHARE, ExpertShape, plan_host_experts, plan_slots
from pgmoe.errors import BudgetTooSmall, ConfigError

MIB = 2**20
SHAPE = ExpertShape(num_experts=24, slot_bytes=MIB, top_k=2, dense_bytes=10 * MIB)

shapes = st.builds(
    ExpertShape,
    num_experts=st.integers(9, 20_000),
    slot_bytes=st.integers(1, 40_000).map(lambda pages: 4096 * pages),
    top_k=st.integers(1, 8),
    dense_bytes=st.integers(0, 2**36),
)


@pytest.mark.parametrize(
    ("budget", "slots"),
    [
        ("100%", 24),
        ("50%", 12),
        ("8.4%", 2),
        ("12.49%", 2),
        ("12.5%", 3),
        ("12MiB", 2),
        (12 * MIB, 2),
        (13 * MIB - 1, 2),
        (13 * MIB, 3),
        ("34MiB", 24),
        ("33.99MiB", 23),
        ("1TiB", 24),
    ],
)
def test_a_budget_buys_whole_slots_and_never_more_than_all_experts(budget: str | int, slots: int) -> None:
    assert plan_slots(budget, SHAPE) == slots


@pytest.mark.parametrize("budget", ["8.3%", "0%", "0", 0, "5MiB", 12 * MIB - 1])
def test_a_budget_too_small_names_the_smallest_that_works(budget: str | int) -> None:
    with pytest.raises(BudgetTooSmall) as error:
        plan_slots(budget, SHAPE)
    assert error.value.minimum_bytes == 12 * MIB
    assert f"device_memory {budget!r}" in str(error.value)
    assert "the smallest that works is 12MiB" in str(error.value)
    assert "or 8.4% of the experts" in str(error.value)


@given(shapes)
def test_every_budget_that_is_named_as_the_smallest_works(shape: ExpertShape) -> None:
    with pytest.raises(BudgetTooSmall) as error:
        plan_slots("0", shape)
    named = re.search(r"works is (\d+MiB) .* or ([\d.]+%) of", str(error.value))
    assert named is not None
    assert plan_slots(error.value.minimum_bytes, shape) == shape.top_k
    assert plan_slots(named[1], shape) >= shape.top_k
    assert plan_slots(named[2], shape) >= shape.top_k
    with pytest.raises(BudgetTooSmall):
        plan_slots(error.value.minimum_bytes - 1, shape)


@given(shapes)
def test_all_experts_fit_into_all_of_them(shape: ExpertShape) -> None:
    assert plan_slots("100%", shape) == shape.num_experts
    assert plan_slots(shape.dense_bytes + shape.expert_bytes, shape) == shape.num_experts
    assert plan_slots(shape.dense_bytes + shape.expert_bytes - 1, shape) == shape.num_experts - 1


@pytest.mark.parametrize("budget", ["", "much", "-1", "101%", "5XB", -1, "auto", "50 % %"])
def test_nonsense_is_refused(budget: str | int) -> None:
    with pytest.raises(ConfigError):
        plan_slots(budget, SHAPE)
    if budget != "auto":
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
