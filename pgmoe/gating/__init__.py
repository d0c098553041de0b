"""Which experts come next: one Protocol (`pgmoe.routing.Gating`), several ways of knowing."""

from __future__ import annotations
from collections.abc import Sequence
from torch import Tensor
from pgmoe.routing import Gating, Prediction, Routing


class OnDemand:
    limited = True

    def begin(self, sequence: str) -> None: ...
    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        return None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        return ()


def make_gating(name: str, loaded: object) -> Gating:
    return OnDemand()
