"""Who runs next. Knows names of requests alone: no model, no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pgmoe.errors import EngineOverloaded


@dataclass(frozen=True)
class SchedulerOutput:
    """The requests whose tokens the next step computes; today one at most."""

    request_ids: tuple[str, ...]


class Scheduler:
    """First come, first served into `max_running` places; who has one gets every `max_running`-th step."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
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

    def add(self, request_id: str) -> None:
        """Put a request at the end of the queue. Raises EngineOverloaded, changing nothing, if it is full."""
        limit = self._max_running + self._max_waiting
        if self.num_running + self.num_waiting >= limit:
            raise EngineOverloaded(
                f"{self.num_running} requests run and {self.num_waiting} wait, the limit is {limit}; "
                "try again later"
            )
        self._waiting.append(request_id)

    def remove(self, request_id: str) -> None:
        """Take a request out, wherever it is; its place is free at once."""
        queue = self._running if request_id in self._running else self._waiting
        queue.remove(request_id)

    def schedule(self) -> SchedulerOutput:
        """Whose turn it is. Newcomers join the round at its end: a stream of short ones delays nobody."""
        while self._waiting and self.num_running < self._max_running:
            self._running.append(self._waiting.popleft())
        if not self._running:
            return SchedulerOutput(())
        self._running.rotate(-1)
        return SchedulerOutput((self._running[-1],))
