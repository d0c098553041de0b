"""How often a cache of any size would have hit on recorded routing."""

from __future__ import annotations

from pgmoe.errors import ConfigError
from pgmoe.experts.policies import check_policy, make_policy
from pgmoe.simulation.demand import demands
from pgmoe.simulation.replay import replay_misses
from pgmoe.trace import Trace


class HitRates:
    """Of one trace under one policy, the cache empty at its start."""

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
        self._wanted = demands(trace)
        self._num_uses = sum(map(len, self._wanted))

    def at(self, num_slots: int) -> float:
        """Hits over uses, 0 to 1; 0 for a trace without any."""
        policy = make_policy(self._policy, self._experts_per_layer)
        return 1 - replay_misses(self._wanted, num_slots, policy) / self._num_uses if self._num_uses else 0.0
