from __future__ import annotations

import pytest

from pgmoe.errors import ConfigError
from pgmoe.layout import ExpertId
from pgmoe.simulation.demand import demands
from pgmoe.simulation.pools import count_misses, parse_slots
from tests.unit.simulation.conftest import random_trace


@pytest.mark.parametrize(
    ("budget", "slots"), [("25%", 60), ("10%", 24), ("0.5%", 1), ("100%", 240), ("64", 64), ("999", 240)]
)
def test_a_budget_is_a_share_or_a_number_of_slots(budget: str, slots: int) -> None:
    assert parse_slots(budget, 240) == slots


@pytest.mark.parametrize(
    ("budget", "fault"),
    [
        ("2GB", "budget '2GB' is neither a share nor a number of slots"),
        ("half", "'half' is neither a share"),
        ("120%", "more than the whole"),
        ("0", "budget '0' is not one slot for 240 experts"),
        ("0.4%", "is not one slot"),
        ("-3", "is not one slot"),
    ],
)
def test_any_other_budget_is_refused(budget: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_slots(budget, 240)


def test_slots_are_spread_evenly_over_layers() -> None:
    wanted = demands(random_trace(0, num_steps=3))
    seen: list[tuple[set[int], int]] = []

    def misses(some: tuple[tuple[ExpertId, ...], ...], slots: int) -> int:
        seen.append(({e.layer for demand in some for e in demand}, slots))
        return len(some)

    assert count_misses(wanted, 8, 3, "per-layer", misses) == len(wanted)
    assert seen == [({0}, 3), ({1}, 3), ({2}, 2)]
    seen.clear()
    assert count_misses(wanted, 8, 3, "global", misses) == len(wanted)
    assert seen == [({0, 1, 2}, 8)]


def test_a_layer_without_a_slot_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 slots are not one for each of 3 layers"):
        count_misses((), 2, 3, "per-layer", lambda wanted, slots: 0)
