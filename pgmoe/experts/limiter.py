"""Whether and how much may be fetched on a guess. Pure: told what happened, no clock, no tensor, no I/O.

One limiter stands for one link. Outcomes are booked one expert at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class LimiterRules:
    """How much evidence the limiter wants, and how it weighs it."""

    window_outcomes: int = 256
    """Guesses are judged by the outcomes of so many experts, the newest. Few make a lottery of it: of 20
    guesses that are right 7 times in 10, now and then more than half are wrong."""
    return_ratio: float = 1.5
    """Once off, guesses are taken up again when useful bytes are this many times the wasted ones. Being above
    1, it keeps guesses that are right half of the time from switching to and fro."""
    shadow_every: int = 11
    """While guesses are off, predictions of every so many layers are scored. A prime, so that all layers
    of a model get their turn."""
    num_windows: int = 32
    """The compute window is the median of so many layers."""
    least_stall_share: float = 0.1
    """Guesses rest while compute waits for less of its time than this: there is less to gain than asking
    ahead costs. Below it they lost up to a tenth (benchmarks/results/prefetch-small-moe-*.json)."""
    num_stalls: int = 256
    """So many layers are looked at for that."""

    def __post_init__(self) -> None:
        sizes = (self.window_outcomes, self.shadow_every, self.num_windows, self.num_stalls)
        assert min(sizes) >= 1, sizes
        assert self.return_ratio >= 1, self.return_ratio


class OutcomeWindow:
    """The newest outcomes of guesses: how many bytes of them were useful and how many wasted."""

    def __init__(self, num_outcomes: int) -> None:
        self._size = num_outcomes
        self._outcomes: deque[tuple[int, int]] = deque()
        self.useful_bytes = 0
        self.wasted_bytes = 0

    def add(self, useful_bytes: int, wasted_bytes: int) -> None:
        """Take in one outcome and forget the oldest where the window is full."""
        if len(self._outcomes) == self._size:
            useful, wasted = self._outcomes.popleft()
            self.useful_bytes -= useful
            self.wasted_bytes -= wasted
        self._outcomes.append((useful_bytes, wasted_bytes))
        self.useful_bytes += useful_bytes
        self.wasted_bytes += wasted_bytes

    @property
    def conclusive(self) -> bool:
        """Whether half of the window is there to judge by."""
        return 2 * len(self._outcomes) >= self._size

    def clear(self) -> None:
        """Forget everything."""
        self._outcomes.clear()
        self.useful_bytes = self.wasted_bytes = 0


class PrefetchLimiter:
    """Lets guesses use what the link carries while a layer computes, and only as long as they pay.

    Guesses are on while, in the newest outcomes, useful bytes are at least the wasted ones. Off, no byte
    moves for a guess, but some predictions are still scored as if it had (`sample`, `shadow`), and when these
    have become good enough, guesses are on again. After each switch the evidence is gathered anew.
    """

    def __init__(self, bandwidth: float, rules: LimiterRules | None = None) -> None:
        """`bandwidth`: bytes per second that the link carries."""
        self._bandwidth = bandwidth
        self._rules = rules or LimiterRules()
        self._windows: deque[float] = deque(maxlen=self._rules.num_windows)
        self._layers: deque[tuple[float, float]] = deque()
        self._seconds = self._stall_s = 0.0
        self._real = OutcomeWindow(self._rules.window_outcomes)
        self._shadow = OutcomeWindow(self._rules.window_outcomes)
        self._num_asked = 0
        self.on = True
        self.num_switches = 0
        self.useful_bytes = 0
        self.late_bytes = 0
        self.wasted_bytes = 0
        self.shadow_useful_bytes = 0
        self.shadow_wasted_bytes = 0

    @property
    def window_s(self) -> float:
        """Seconds from one MoE layer's start to the next one's, without stalls; 0 as long as none is known.

        A median: a few long layers (a prompt among single tokens) do not widen it for all.
        """
        return median(self._windows) if self._windows else 0.0

    @property
    def budget_bytes(self) -> int:
        """What the link carries during one layer's compute."""
        return int(self._bandwidth * self.window_s)

    def observe_layer(self, seconds: float, stall_s: float) -> None:
        """A layer took so long from its start to the next one's; compute waited for `stall_s` of it."""
        self._windows.append(max(0.0, seconds - stall_s))
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

    def allowance(self, in_flight_bytes: int, distance: int = 1) -> int:
        """Bytes that may be ordered now on a guess about the layer `distance` layers ahead.

        What the link still has to carry of earlier guesses is told and taken off. What is demanded is not: it
        goes first, and compute waits for it, which is no part of the window.
        """
        return max(0, distance * self.budget_bytes - in_flight_bytes) if self.on else 0

    def useful(self, num_bytes: int) -> None:
        """A guess was ready when it was needed."""
        self.useful_bytes += num_bytes
        self._judge(num_bytes, 0)

    def late(self, num_bytes: int) -> None:
        """A guess was needed before it was ready. Its bytes had to come anyway: neither useful nor wasted."""
        self.late_bytes += num_bytes

    def wasted(self, num_bytes: int) -> None:
        """A guess was evicted unused."""
        self.wasted_bytes += num_bytes
        self._judge(0, num_bytes)

    def sample(self) -> bool:
        """Whether this layer's prediction is to be scored in shadow. Ask once a layer; False while on."""
        if self.on:
            return False
        self._num_asked += 1
        return self._num_asked % self._rules.shadow_every == 0

    def shadow(self, num_bytes: int, useful: bool) -> None:
        """A missing expert of a sampled prediction would have been useful, or wasted.

        Of no consequence while guesses are on: the sample was taken before they came on.
        """
        if self.on:
            return
        if useful:
            self.shadow_useful_bytes += num_bytes
            self._shadow.add(num_bytes, 0)
        else:
            self.shadow_wasted_bytes += num_bytes
            self._shadow.add(0, num_bytes)
        good = self._shadow.useful_bytes >= self._rules.return_ratio * self._shadow.wasted_bytes
        if self._shadow.conclusive and good:
            self._switch(True)

    def _judge(self, useful_bytes: int, wasted_bytes: int) -> None:
        # Guesses that were under way when they were switched off are counted, but judge nothing any more.
        if not self.on:
            return
        self._real.add(useful_bytes, wasted_bytes)
        if self._real.conclusive and self._real.wasted_bytes > self._real.useful_bytes:
            self._switch(False)

    def _switch(self, on: bool) -> None:
        self.on = on
        self.num_switches += 1
        self._real.clear()
        self._shadow.clear()
