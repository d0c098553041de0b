"""How much may be fetched on a guess. Pure: told what happened, no clock, no tensor, no I/O.

One limiter stands for one link.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class LimiterRules:
    """Over how many layers the limiter looks back."""

    num_windows: int = 32
    """The compute window is the median of so many layers."""
    least_stall_share: float = 0.1
    """Guesses rest while compute waits for less of its time than this: there is less to gain than asking
    ahead costs. Without it they lost up to a seventh (prefetch-small-moe-2026-11-27-7889c28.json)."""
    num_stalls: int = 256
    """So many layers of passes of one token are looked at for that."""

    def __post_init__(self) -> None:
        assert min(self.num_windows, self.num_stalls) >= 1, self


class PrefetchLimiter:
    """Gives guesses what the link carries while a layer computes, and nothing while compute hardly waits."""

    def __init__(self, bandwidth: float, rules: LimiterRules | None = None) -> None:
        """`bandwidth`: bytes per second that the link carries."""
        self.bandwidth = bandwidth
        """Bytes per second."""
        self._rules = rules or LimiterRules()
        self._windows: deque[float] = deque(maxlen=self._rules.num_windows)
        self._layers: deque[tuple[float, float]] = deque()
        self._seconds = self._stall_s = 0.0

    @property
    def window_s(self) -> float:
        """Seconds from one MoE layer's start to the next one's, without stalls; 0 as long as none is known.

        A median: a few long layers (a prompt among single tokens) do not widen it for all.
        """
        return median(self._windows) if self._windows else 0.0

    @property
    def budget_bytes(self) -> int:
        """What the link carries during one layer's compute."""
        return int(self.bandwidth * self.window_s)

    def observe_layer(self, seconds: float, stall_s: float, *, lone: bool = True) -> None:
        """A layer took so long from its start to the next one's; compute waited for `stall_s` of it.

        `lone`: in a pass of one token. Only these say whether waiting is worth guesses; a prompt may take as
        long as hundreds of them.
        """
        self._windows.append(max(0.0, seconds - stall_s))
        if not lone:
            return
        if len(self._layers) == self._rules.num_stalls:
            old_seconds, old_stall_s = self._layers.popleft()
            self._seconds -= old_seconds
            self._stall_s -= old_stall_s
        self._layers.append((seconds, stall_s))
        self._seconds += seconds
        self._stall_s += stall_s

    @property
    def resting(self) -> bool:
        """Whether compute waits too little for guesses to pay, whatever they are worth."""
        if 2 * len(self._layers) < self._rules.num_stalls:
            return False
        return self._stall_s < self._rules.least_stall_share * self._seconds

    def allowance(self, in_flight_bytes: int) -> int:
        """Bytes that may be ordered now on a guess about the next layer.

        What the link still has to carry of earlier guesses is told and taken off. What is demanded is not: it
        goes first, and compute waits for it, which is no part of the window.
        """
        return max(0, self.budget_bytes - in_flight_bytes)
