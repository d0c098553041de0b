"""One thread's time, divided among the parts of what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

CALLS, BATCHES = 2000, 5
P = ParamSpec("P")
R = TypeVar("R")


class PartTimer:
    """Seconds of each part without those of parts entered within it: together, all the time that passed."""

    def __init__(self, parts: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
        """The first part has whatever belongs to no other."""
        self._clock = clock
        self._seconds = dict.fromkeys(parts, 0.0)
        self._part = parts[0]
        self._since = clock()
        self.num_calls = 0
        """Of functions that are timed, since `restart`."""

    def restart(self) -> None:
        """Forget what was counted; what is entered stays so."""
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self.num_calls = 0
        self._since = self._clock()

    def read(self) -> dict[str, float]:
        """Seconds by part up to now."""
        self._switch(self._part)
        return dict(self._seconds)

    def around(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, whose time is this part's."""

        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            self.num_calls += 1
            outer = self._switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(outer)

        return timed

    def _switch(self, part: str) -> str:
        """The time so far is the present part's, from now on it is this one's; return the former."""
        outer, now = self._part, self._clock()
        self._seconds[outer] += now - self._since
        self._part, self._since = part, now
        return outer


def call_cost_s() -> float:
    """Seconds by which a timer lengthens a call: of an empty function, in the best of a few batches."""

    def empty() -> None:
        pass

    timed = PartTimer(["outside", "inside"]).around("inside", empty)
    cost = min(_batch_s(timed) for _ in range(BATCHES)) - min(_batch_s(empty) for _ in range(BATCHES))
    return max(cost, 0.0) / CALLS


def _batch_s(function: Callable[[], None]) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        function()
    return time.perf_counter() - begin
