"""How often a cache of any size would have hit on recorded routing."""

from __future__ import annotations

from dataclasses import replace

from pgmoe.errors import ConfigError
from pgmoe.experts.policies import check_policy, make_policy
from pgmoe.simulation.demand import demands
from pgmoe.simulation.replay import replay_misses
from pgmoe.trace import Trace


class HitRates:
    """Of one trace's single tokens under one policy, in a cache that has served them once before.

    Passes of several tokens, prompts for one, are left out, unless the trace has no others.
    """

    def __init__(self, trace: Trace, policy: str, experts_per_layer: tuple[int, ...]) -> None:
        """Raises ConfigError for an unknown policy, and where the trace is of another kind of model."""
        check_policy(policy)
        if trace.experts_per_layer != experts_per_layer:
            raise ConfigError(
                f"the trace is of {trace.model}, whose layers have {trace.experts_per_layer} experts, and "
                f"this model's have {experts_per_layer}; record one of this model with `pgmoe trace`"
            )
        self._policy = policy
        self._experts_per_layer = experts_per_layer
        lone = tuple(s for s in trace.steps if all(len(layer.ids) == 1 for layer in s.layers))
        self._wanted = demands(replace(trace, steps=lone or trace.steps))
        self._num_uses = sum(map(len, self._wanted))

    def at(self, num_slots: int) -> float:
        """Hits over uses, 0 to 1; 0 for a trace without any."""
        if not self._num_uses:
            return 0.0
        once, twice = (self._misses(times, num_slots) for times in (1, 2))
        return 1 - (twice - once) / self._num_uses

    def _misses(self, times: int, num_slots: int) -> int:
        policy = make_policy(self._policy, self._experts_per_layer)
        return replay_misses(self._wanted * times, num_slots, policy)
