"""Knows the future from a recording of it: a yardstick for all that guess."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from pgmoe.routing import Prediction, Routing
from pgmoe.trace import Trace, TracedLayer, together

_logger = logging.getLogger(__name__)


class Oracle:
    """Replays a trace of the same requests: the sequences that begin are the recorded ones, in their order.

    After a step's last layer it tells the first one of the next recorded step that has not begun. Once what
    runs departs from the recording it says so in the log, and predicts no more.
    """

    predicts = True
    limited = False
    exact = True
    reach = 1

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._steps_of: dict[str, deque[int]] = {}
        for index, step in enumerate(trace.steps):
            self._steps_of.setdefault(step.sequence, deque()).append(index)
        self._unclaimed = deque(self._steps_of)
        self._recorded_as: dict[str, str] = {}
        self._coming: deque[TracedLayer] = deque()
        self._begun: set[int] = set()
        self._next = 0
        self._departed = False

    def begin(self, sequences: Sequence[str]) -> None:
        """See Gating."""
        sequence = together(sequences)
        if self._departed:
            return
        if self._coming:
            self._depart(f"a step ends before layer {self._coming[0].layer}")
            return
        if sequence not in self._recorded_as and self._unclaimed:
            self._recorded_as[sequence] = self._unclaimed.popleft()
        steps = self._steps_of.get(self._recorded_as.get(sequence, ""))
        if not steps:
            self._depart(f"sequence {sequence!r} has no recorded step left")
            return
        self._begun.add(step := steps.popleft())
        self._coming.extend(self._trace.steps[step].layers)
        while self._next in self._begun:
            self._begun.remove(self._next)
            self._next += 1

    def look_ahead(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def predict(self, routing: Routing) -> Sequence[Prediction]:
        """One exact prediction, or none at the trace's end."""
        if self._departed:
            return ()
        recorded = self._coming.popleft() if self._coming else None
        if recorded is None or recorded.layer != routing.layer or not self._same(recorded, routing):
            self._depart(f"layer {routing.layer} chooses what was not recorded")
            return ()
        if self._coming:
            following = self._coming[0]
        elif self._next < len(self._trace.steps):
            following = self._trace.steps[self._next].layers[0]
        else:
            return ()
        used = self._used(following.layer, following.ids).most_common()
        return [
            Prediction(following.layer, tuple(e for e, _ in used), tuple(float(n) for _, n in used), True)
        ]

    def _same(self, recorded: TracedLayer, routing: Routing) -> bool:
        return self._used(routing.layer, recorded.ids) == self._used(routing.layer, routing.ids)

    def _used(self, layer: int, ids: Sequence[Sequence[int]]) -> Counter[int]:
        """Tokens of each expert."""
        return Counter(e for e in chain.from_iterable(ids) if e < self._trace.experts_per_layer[layer])

    def _depart(self, reason: str) -> None:
        self._departed = True
        _logger.warning("the oracle is silent from now on, as this is no longer what it recorded: %s", reason)
