from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from pgmoe.engine.expert_choice import LEAST_SAVING, MOST_CANDIDATES, ExpertChoice
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


@pytest.mark.parametrize("waiting", ["a", "a b c", "a a2"])
def test_the_first_is_as_good_as_any_where_nothing_is_saved(waiting: str) -> None:
    assert ask(choice(), waiting) is None


def test_nobody_is_passed_over_for_a_little() -> None:
    for saving, preferred in ((LEAST_SAVING / 2, None), (2 * LEAST_SAVING, "b")):
        footprints = {"a": np.ones((1, 4), np.float32), "b": np.full((1, 4), 1 - saving, np.float32)}
        assert ask(choice(footprints=footprints), "a b") == preferred


def test_only_the_first_of_those_that_wait_are_looked_at() -> None:
    waiting = [f"a{number}" for number in range(MOST_CANDIDATES)]
    assert ask(choice([ExpertId(0, 1)]), " ".join([*waiting[:-1], "b"])) == "b"
    assert ask(choice([ExpertId(0, 1)]), " ".join([*waiting, "b"])) is None


def test_a_cost_is_what_drawing_experts_counts() -> None:
    """The formula against its meaning: experts, absent and used by nobody else, in drawn steps."""
    draw = np.random.default_rng(seed := random.randrange(2**32))
    use = {name: draw.random((2, 6), np.float32) for name in "abcde"}
    held = [ExpertId(0, 1), ExpertId(1, 4)]
    absent = np.ones((2, 6), bool)
    absent[tuple(zip(*held, strict=True))] = False
    counts = {}
    for name in "abc":
        steps = {n: draw.random((40_000, 2, 6)) < use[n] for n in (name, "d", "e")}
        counts[name] = (steps[name] & ~steps["d"] & ~steps["e"] & absent).sum() / 40_000
    best = min(counts, key=counts.__getitem__)
    clear = sorted(counts.values())[1] - counts[best] > 0.1 and best != "a"
    chosen = ask(choice(held, use), "a b c", running="d e")
    assert not clear or chosen == best, seed
