from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.engine.memory_plan import HOST_SHARE, ExpertShape, plan_slots, wants_host_store
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
            wants_host_store(budget, SHAPE, accelerator=True, free_ram=2**40)


@pytest.mark.parametrize("budget", ["0", 0, "0%", "0MiB"])
def test_no_host_memory_means_no_host_store(budget: str | int) -> None:
    assert not wants_host_store(budget, SHAPE, accelerator=True, free_ram=2**40)


@pytest.mark.parametrize("budget", ["100%", "24MiB", 24 * MIB, "1GiB"])
def test_enough_host_memory_means_a_host_store(budget: str | int) -> None:
    assert wants_host_store(budget, SHAPE, accelerator=False, free_ram=24 * MIB)


@pytest.mark.parametrize("budget", ["50%", "99.9%", "23MiB", 1])
def test_host_memory_for_some_experts_is_refused_with_the_way_out(budget: str | int) -> None:
    with pytest.raises(ConfigError, match=r"does not hold all experts \(24MiB\); give that much, or 0"):
        wants_host_store(budget, SHAPE, accelerator=False, free_ram=2**40)


def test_more_host_memory_than_is_free_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"24\.0 MiB, 23\.0 MiB of RAM are free; give 0"):
        wants_host_store("100%", SHAPE, accelerator=False, free_ram=23 * MIB)


def test_auto_takes_host_memory_for_an_accelerator_where_it_fits_well() -> None:
    enough = int(SHAPE.expert_bytes / HOST_SHARE) + 1
    assert wants_host_store("auto", SHAPE, accelerator=True, free_ram=enough)
    assert not wants_host_store("auto", SHAPE, accelerator=True, free_ram=enough - 2)
    assert not wants_host_store("auto", SHAPE, accelerator=False, free_ram=2**40)
