from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.gating.recording import RecordingGating
from pgmoe.routing import Prediction, Routing
from pgmoe.trace import TracedLayer, TracedStep


class Ahead:
    """Looks ahead, and guesses too."""

    predicts = True
    limited = True
    exact = False

    def __init__(self, reach: int = 1) -> None:
        self.reach = reach
        self.begun: list[str] = []

    def begin(self, sequences: Sequence[str]) -> None:
        self.begun.extend(sequences)

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        return hidden.to(torch.int64) + layer

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        return [Prediction(routing.layer + 1, (2,), (1.0,))]


def routing(layer: int, ids: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]] = ()) -> Routing:
    weights = torch.arange(1, 1 + sum(map(len, ids))).view(len(ids), -1) / 8
    return Routing(layer, ids, weights, ahead)


def test_it_keeps_selection_scores_and_what_was_looked_ahead() -> None:
    gating = RecordingGating(Ahead())
    gating.begin(["a"])
    gating.predict(routing(0, [[3, 1], [0, 2]], ahead=[[7, 0], [5, 6]]))
    gating.predict(routing(1, [[7, 6], [5, 0]]))
    gating.begin(["b"])
    gating.predict(routing(0, [[1, 2]]))
    scores = ((0.125, 0.25), (0.375, 0.5))
    assert gating.steps((4, 8)) == (
        TracedStep(
            "a",
            (
                TracedLayer(0, ((3, 1), (0, 2)), scores),
                TracedLayer(1, ((7, 6), (5, 0)), scores, predicted=((7, 0), (5, 6))),
            ),
        ),
        TracedStep("b", (TracedLayer(0, ((1, 2),), ((0.125, 0.25),)),)),
    )


def test_what_was_looked_ahead_further_belongs_to_the_layer_that_it_is_of() -> None:
    gating = RecordingGating(Ahead(reach=2))
    gating.begin(["a"])
    for layer in range(3):
        gating.predict(routing(layer, [[1, 2]], ahead=[[layer, 7]] if layer == 0 else ()))
    (step,) = gating.steps((8, 8, 8))
    assert [layer.predicted for layer in step.layers] == [(), (), ((0, 7),)]


def test_what_was_looked_ahead_in_one_pass_is_nothing_to_the_next() -> None:
    gating = RecordingGating(Ahead())
    gating.begin(["a"])
    gating.predict(routing(0, [[1]], ahead=[[2]]))
    gating.begin(["a"])
    gating.predict(routing(0, [[3]]))
    assert [step.layers[0].predicted for step in gating.steps([4])] == [(), ()]


def test_entries_that_stand_for_no_expert_are_left_out_with_their_scores() -> None:
    gating = RecordingGating(Ahead())
    gating.begin(["a"])
    gating.predict(routing(0, [[4, 1], [4, 4]], ahead=[[4, 2], [0, 3]]))
    gating.predict(routing(1, [[0, 1], [1, 2]]))
    first, second = gating.steps((4, 4))[0].layers
    assert (first.ids, first.scores) == (((1,), ()), ((0.25,), ()))
    assert second.predicted == ((2,), (0, 3))


def test_it_looks_ahead_as_the_inner_gating_does_and_lets_nothing_be_fetched() -> None:
    gating = RecordingGating(inner := Ahead())
    gating.begin(["a"])
    assert inner.begun == ["a"]
    assert gating.limited is False  # or the look-ahead would pause while guesses do not pay
    assert list(gating.predict(routing(0, [[1]]))) == []
    ahead = gating.look_ahead(3, torch.ones(2, 2))
    assert ahead is not None
    assert ahead.tolist() == [[4, 4], [4, 4]]
