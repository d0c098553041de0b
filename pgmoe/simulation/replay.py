"""A trace served once more by the cache that serves, with any policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pgmoe.experts.cache import ExpertCache, SlotState
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.layout import ExpertId
from pgmoe.simulation.demand import Demand


def replay_misses(wanted: Sequence[Demand], num_slots: int, policy: EvictionPolicy) -> int:
    """Misses of a cache that fetches on demand and nothing else, as an ExpertPool leads it."""
    cache = ExpertCache(num_slots, policy)
    return sum(_serve(cache, demand) for demand in wanted)


def _serve(cache: ExpertCache, demand: Demand) -> int:
    """Have each of them ready once, resident ones first; gives the number of the others."""
    ready, missing = deque[ExpertId](), deque[ExpertId]()
    for expert in demand:
        (ready if cache.state(expert) is SlotState.READY else missing).append(expert)
    for expert in ready:
        cache.pin(expert)
    num_missing = len(missing)
    in_flight = deque[ExpertId]()
    while ready or missing or in_flight:
        while missing and cache.begin(missing[0]) is not None:
            in_flight.append(missing.popleft())
        if not ready:
            arrived = in_flight.popleft()
            cache.finish(arrived)
            cache.pin(arrived)
            ready.append(arrived)
        cache.unpin(ready.popleft())
    return num_missing
