"""When each token of an answer came."""

from __future__ import annotations

import time
from collections.abc import Callable

from pgmoe.bench.job import Answer


class TokenClock:
    """Started by making it. `after_token`, if given, is called at each token with their number so far.

    The time that `after_token` takes is not counted.
    """

    def __init__(self, after_token: Callable[[int], None] | None = None) -> None:
        self._after_token = after_token
        self._tokens: list[int] = []
        self._arrivals_s: list[float] = []
        self._begin_s = time.perf_counter()

    def take(self, token: int) -> None:
        """A token is there."""
        now = time.perf_counter()
        self._tokens.append(token)
        self._arrivals_s.append(now - self._begin_s)
        if self._after_token is not None:
            self._after_token(len(self._tokens))
            self._begin_s += time.perf_counter() - now

    def answer(self) -> Answer:
        """What was taken so far, at least one token."""
        first, last = self._arrivals_s[0], self._arrivals_s[-1]
        return Answer(tuple(self._tokens), first, last - first)
