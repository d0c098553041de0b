"""Who runs next. Knows names of requests and the bytes that each may come to hold: no model, no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pgmoe.errors import EngineOverloaded


@dataclass(frozen=True)
class SchedulerOutput:
    """The requests whose tokens the next step computes; today one at most."""

    request_ids: tuple[str, ...]


class Scheduler:
    """First come, first served into `max_running` places; who has one gets every `max_running`-th step.

    All running requests' bytes together stay within `kv_capacity`. The first in the queue waits until its own
    fit, and those behind wait with it: so it gets its place as soon as those that run leave enough.
    """

    def __init__(self, max_running: int, max_waiting: int, kv_capacity: int | None = None) -> None:
        """`kv_capacity` None: no limit."""
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._kv_capacity = kv_capacity
        self._kv_bytes: dict[str, int] = {}
        self._waiting: deque[str] = deque()
        self._running: deque[str] = deque()

    @property
    def num_running(self) -> int:
        """Requests with a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests without one."""
        return len(self._waiting)

    @property
    def reserved_bytes(self) -> int:
        """Of the capacity, what running requests hold or may yet come to hold."""
        return sum(self._kv_bytes[request_id] for request_id in self._running)

    def add(self, request_id: str, kv_bytes: int = 0) -> None:
        """Put a request of so many bytes, at most the capacity, at the end of the queue.

        Raises EngineOverloaded, changing nothing, if it is full.
        """
        assert self._kv_capacity is None or kv_bytes <= self._kv_capacity, (kv_bytes, self._kv_capacity)
        limit = self._max_running + self._max_waiting
        if self.num_running + self.num_waiting >= limit:
            raise EngineOverloaded(
                f"{self.num_running} requests run and {self.num_waiting} wait, the limit is {limit}; "
                "try again later"
            )
        self._waiting.append(request_id)
        self._kv_bytes[request_id] = kv_bytes

    def remove(self, request_id: str) -> None:
        """Take a request out, wherever it is; its place and its bytes are free at once."""
        queue = self._running if request_id in self._running else self._waiting
        queue.remove(request_id)
        del self._kv_bytes[request_id]

    def schedule(self) -> SchedulerOutput:
        """Whose turn it is. Newcomers join the round at its end: a stream of short ones delays nobody."""
        while self._waiting and self._has_room_for(self._waiting[0]):
            self._running.append(self._waiting.popleft())
        if not self._running:
            return SchedulerOutput(())
        self._running.rotate(-1)
        return SchedulerOutput((self._running[-1],))

    def _has_room_for(self, request_id: str) -> bool:
        if self.num_running >= self._max_running:
            return False
        after = self.reserved_bytes + self._kv_bytes[request_id]
        return self._kv_capacity is None or after <= self._kv_capacity
