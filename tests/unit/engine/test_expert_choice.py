from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from pgmoe.engine.expert_choice import LEAST_SAVING, ExpertChoice, brought_along
from pgmoe.layout import ExpertId

ONE_HOT = {name: np.eye(4, dtype=np.float32)[None, i] for i, name in enumerate("abcd")}
"""Each uses an expert of its own."""


def choice(held: Sequence[ExpertId] = (), footprints: dict[str, np.ndarray] | None = None) -> ExpertChoice:
    known = footprints or ONE_HOT
    return ExpertChoice(lambda name, _: known[name[0]], lambda: held)


def ask(chooser: ExpertChoice, waiting: str, running: str = "") -> str | None:
    names = waiting.split()
    return chooser({name: [1] for name in names}, {name: [1] for name in running.split()})


def test_who_needs_what_is_in_slots_is_preferred() -> None:
    assert ask(choice([ExpertId(0, 2)]), "a b c d") == "c"


def test_who_needs_what_others_use_anyway_is_preferred() -> None:
    assert ask(choice(), "a b c d", running="c2") == "c"


@pytest.mark.parametrize("waiting", ["a b c", "a a2"])
def test_the_first_is_as_good_as_any_where_nothing_is_saved(waiting: str) -> None:
    assert ask(choice(), waiting) is None


def test_nobody_is_passed_over_for_a_little() -> None:
    for saving, preferred in ((LEAST_SAVING / 2, None), (2 * LEAST_SAVING, "b")):
        footprints = {"a": np.ones((1, 4), np.float32), "b": np.full((1, 4), 1 - saving, np.float32)}
        assert ask(choice(footprints=footprints), "a b") == preferred


def test_costs_are_what_drawing_experts_counts() -> None:
    """The formula against its meaning: experts, absent and used by nobody else, in drawn steps."""
    draw = np.random.default_rng(seed := random.randrange(2**32))
    use_CLE, others = draw.random((3, 2, 6)), draw.random((2, 2, 6))
    absent = draw.random((2, 6)) < 0.7
    num_steps = 20_000
    drawn_CSLE = draw.random((3, num_steps, 2, 6)) < use_CLE[:, None]
    used_by_others_SLE = (draw.random((2, num_steps, 2, 6)) < others[:, None]).any(axis=0)
    costs_C, others_cost = brought_along(use_CLE, others, absent.astype(float))
    counted_C = (drawn_CSLE & ~used_by_others_SLE & absent).sum(axis=(1, 2, 3)) / num_steps
    np.testing.assert_allclose(costs_C, counted_C, atol=0.1, err_msg=str(seed))
    assert others_cost == pytest.approx((used_by_others_SLE & absent).sum() / num_steps, abs=0.1), seed
