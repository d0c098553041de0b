"""Which expert is in which slot: the look-up table and its bookkeeping. Moves no bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from enum import Enum

from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.layout import ExpertId


class SlotState(Enum):
    """What a look-up finds."""

    MISSING = "missing"
    IN_FLIGHT = "in flight"
    READY = "ready"


class ExpertCache:
    """Expert -> slot. Used by one thread, the one that computes.

    An expert is evicted only while it is ready and nobody pins it.
    """

    def __init__(self, num_slots: int, policy: EvictionPolicy) -> None:
        self.num_slots = num_slots
        self._policy = policy
        self._slot_of: dict[ExpertId, int] = {}
        self._free = list(range(num_slots))[::-1]
        self._pins: dict[ExpertId, int] = {}
        self._in_flight: set[ExpertId] = set()

    def __len__(self) -> int:
        return len(self._slot_of) - len(self._in_flight)

    def state(self, expert: ExpertId) -> SlotState:
        """Where this expert stands; changes nothing."""
        if expert not in self._slot_of:
            return SlotState.MISSING
        return SlotState.IN_FLIGHT if expert in self._in_flight else SlotState.READY

    @property
    def held(self) -> Collection[ExpertId]:
        """Experts that are ready or in flight; for a look at once, it changes with the cache."""
        return self._slot_of.keys()

    def slot_of(self, expert: ExpertId) -> int:
        """The slot of an expert that is in flight or ready."""
        return self._slot_of[expert]

    def pin(self, expert: ExpertId) -> None:
        """Keep a ready expert in its slot until it is unpinned as often; counts as a use."""
        assert self.state(expert) is SlotState.READY, expert
        self._pins[expert] = self._pins.get(expert, 0) + 1
        self._policy.touch(expert)

    def unpin(self, expert: ExpertId) -> None:
        """Take back one pin."""
        self._pins[expert] -= 1
        if not self._pins[expert]:
            del self._pins[expert]

    @property
    def busy(self) -> set[ExpertId]:
        """Experts that are in flight or pinned."""
        return self._in_flight | set(self._pins)

    def has_room(self) -> bool:
        """Whether `begin` would find a slot, sparing nobody but those in use."""
        return bool(self._free) or self._policy.victim(self._pins) is not None

    def begin(
        self,
        expert: ExpertId,
        spared: Container[ExpertId] = (),
        may_go: Callable[[ExpertId], bool] | None = None,
    ) -> tuple[int, ExpertId | None] | None:
        """Reserve a slot for a missing expert: (slot, evicted expert or None).

        None, and no change, if no slot is free and nobody may be evicted: who is pinned or `spared` may not,
        and of the others the policy's choice only if `may_go` says so. `finish` or `abandon` follows.
        """
        assert self.state(expert) is SlotState.MISSING, expert
        victim = None
        if not self._free:
            victim = self._policy.victim(_Either(self._pins, spared) if spared else self._pins)
            if victim is None or (may_go is not None and not may_go(victim)):
                return None
            self._policy.remove(victim)
            self._free.append(self._slot_of.pop(victim))
        slot = self._slot_of[expert] = self._free.pop()
        self._in_flight.add(expert)
        return slot, victim

    def finish(self, expert: ExpertId) -> None:
        """Its bytes are in the slot: ready, and evictable unless pinned."""
        self._in_flight.remove(expert)
        self._policy.insert(expert)

    def abandon(self, expert: ExpertId) -> None:
        """Its bytes did not come: the slot is free again."""
        self._in_flight.remove(expert)
        self._free.append(self._slot_of.pop(expert))

    def drop(self, expert: ExpertId) -> None:
        """Give up a ready expert that nobody pins."""
        assert self.state(expert) is SlotState.READY, expert
        assert expert not in self._pins, expert
        self._policy.remove(expert)
        self._free.append(self._slot_of.pop(expert))

    def check_integrity(self) -> None:
        """Assert that every slot is free or held by exactly one expert; for tests."""
        slots = [*self._free, *self._slot_of.values()]
        assert sorted(slots) == list(range(self.num_slots)), slots
        assert self._in_flight <= set(self._slot_of)
        assert all(self.state(e) is SlotState.READY for e in self._pins)


class _Either:
    """Two containers as one."""

    def __init__(self, one: Container[ExpertId], other: Container[ExpertId]) -> None:
        self._one = one
        self._other = other

    def __contains__(self, expert: object) -> bool:
        return expert in self._one or expert in self._other
