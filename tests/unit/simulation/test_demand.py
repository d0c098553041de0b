from __future__ import annotations

from pgmoe.layout import ExpertId
from pgmoe.simulation.demand import demands, of_layer
from pgmoe.trace import Trace, TracedLayer, TracedStep

TRACE = Trace(
    "m",
    (4, 4),
    2,
    1,
    (
        TracedStep("a", (TracedLayer(0, ((3, 1), (1, 2)), ()), TracedLayer(1, ((), ()), ()))),
        TracedStep("b", (TracedLayer(0, ((0, 3),), ()), TracedLayer(1, ((2,),), ()))),
    ),
)


def test_a_layer_asks_for_each_of_its_tokens_experts_once() -> None:
    first, second, third = demands(TRACE)  # of the layer whose token went to no expert there is nothing
    assert first == (ExpertId(0, 1), ExpertId(0, 2), ExpertId(0, 3))
    assert (second, third) == ((ExpertId(0, 0), ExpertId(0, 3)), (ExpertId(1, 2),))


def test_one_layers_demands_keep_their_order() -> None:
    first, second, third = demands(TRACE)
    assert of_layer(0, demands(TRACE)) == (first, second)
    assert of_layer(1, demands(TRACE)) == (third,)
