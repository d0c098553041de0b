from __future__ import annotations

import logging
import random

import pytest

from pgmoe.gating.oracle import Oracle
from pgmoe.routing import Routing
from tests.support.routings import play, random_step, routing, trace_of

NUM_LAYERS, NUM_EXPERTS = 3, 6


def passes(seed: int, names: str = "ab") -> list[tuple[str, list[Routing]]]:
    draw = random.Random(seed)
    layers = range(NUM_LAYERS)
    return [(names[i * (i + 1) // 2 % 2], random_step(draw, layers, NUM_EXPERTS, 2)) for i in range(12)]


def used(one: Routing) -> set[int]:
    return {e for row in one.ids for e in row if e < NUM_EXPERTS}


@pytest.mark.parametrize("seed", range(5))
def test_each_layer_is_told_by_the_one_before_over_steps_and_sequences_under_any_names(seed: int) -> None:
    recorded = passes(seed)
    oracle = Oracle(trace_of(recorded, NUM_LAYERS, NUM_EXPERTS))
    found = [p for name, step in recorded for p in play(oracle, f"request {name}", step)]
    expected = [one for _, step in recorded for one in step][1:]
    assert found.pop() == []
    for (prediction,), one in zip(found, expected, strict=True):
        assert prediction.exact
        assert (prediction.layer, set(prediction.experts)) == (one.layer, used(one))


def test_sequences_may_take_other_turns_than_recorded() -> None:
    recorded = passes(0)
    oracle = Oracle(trace_of(recorded, NUM_LAYERS, NUM_EXPERTS))
    turns = [p for p in recorded if p[0] == "a"] + [p for p in recorded if p[0] == "b"]
    for name, step in turns:
        *within, _ = play(oracle, name, step)
        assert [set(p.experts) for (p,) in within] == [used(one) for one in step[1:]]


@pytest.mark.parametrize("case", ["experts", "layer", "short", "long", "steps", "sequences"])
def test_it_falls_silent_and_says_so_once_when_what_runs_was_not_recorded(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    step = [routing(layer, (layer, 5)) for layer in range(NUM_LAYERS)]
    oracle = Oracle(trace_of([("a", step), ("a", step)], NUM_LAYERS, NUM_EXPERTS))
    assert len(play(oracle, "a", step)[0]) == 1
    other = {
        "experts": [("a", [routing(0, (0, 4)), *step[1:]])],
        "layer": [("a", [step[1], step[0], step[2]])],
        "short": [("a", step[:2]), ("a", step)],
        "long": [("a", [*step, step[0]])],
        "steps": [("a", step), ("a", step)],
        "sequences": [("b", step)],
    }[case]
    with caplog.at_level(logging.WARNING):
        for name, run in [*other, ("a", step), ("c", step)]:
            last = play(oracle, name, run)
    assert last == [[]] * NUM_LAYERS
    (record,) = caplog.records
    assert "oracle is silent" in record.getMessage()
