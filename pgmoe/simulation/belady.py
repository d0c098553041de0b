"""The fewest misses that any cache could have had, knowing what comes (Belady 1966)."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence

from pgmoe.layout import ExpertId
from pgmoe.simulation.demand import Demand

_NEVER = 2**62


def belady_misses(wanted: Sequence[Demand], num_slots: int) -> int:
    """Misses of the offline optimum that fetches what is demanded and nothing else.

    Who loses its slot is the expert whose next use lies furthest, one of the demand itself only where the
    demand alone exceeds the slots: such a demand passes through them and leaves those used again soonest.
    """
    future = _Future(wanted)
    resident: set[ExpertId] = set()
    misses = 0
    for demand in wanted:
        misses += sum(expert not in resident for expert in demand)
        resident.update(demand)
        num_others = len(resident) - len(demand)
        # To the demand's own experts the next use is now, so they would be the last to go.
        future.evict(resident, min(num_others, len(resident) - num_slots))
        future.used(demand)
        future.evict(resident, len(resident) - num_slots)
    return misses


class _Future:
    """When each expert is used next, and who is used last."""

    def __init__(self, wanted: Sequence[Demand]) -> None:
        self._places: defaultdict[ExpertId, deque[int]] = defaultdict(deque)
        for place, demand in enumerate(wanted):
            for expert in demand:
                self._places[expert].append(place)
        # (minus the next use, expert): what is out of date is passed over when it comes up.
        self._furthest: list[tuple[int, ExpertId]] = []

    def used(self, demand: Demand) -> None:
        """These have just been used; what counts of each is the use after this one."""
        for expert in demand:
            self._places[expert].popleft()
            heapq.heappush(self._furthest, (-self._next(expert), expert))

    def evict(self, resident: set[ExpertId], count: int) -> None:
        """Take so many out of `resident`, the furthest first."""
        while count > 0:
            next_use, expert = heapq.heappop(self._furthest)
            if expert in resident and -next_use == self._next(expert):
                resident.remove(expert)
                count -= 1

    def _next(self, expert: ExpertId) -> int:
        places = self._places[expert]
        return places[0] if places else _NEVER
