"""Which guesses are worth fetching, judged by how often such guesses were right. Pure: told what happened.

A gating names experts, the likeliest first, and the first are right far more often than the last: on the
model of the headline curve nine times in ten against three (tried by hand, with a quarter of the experts in
slots). So each place in that order is judged by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

NUM_GRADES = 8


def grade_of(place: int, num_places: int) -> int:
    """Of the guess at this place (from 0) among so many: the eighth of the order that it stands in."""
    return place * NUM_GRADES // num_places


@dataclass(frozen=True, kw_only=True)
class TrustRules:
    """How much evidence is wanted, and how it is weighed."""

    window: int = 128
    """A grade is judged by so many outcomes, the newest, once half of them are there. Few make a lottery of
    it: of 20 guesses that are right 7 times in 10, now and then more than half are wrong."""
    least_share: float = 0.5
    """Of them right: below it more bytes are wasted than used, and the grade is left out."""
    return_share: float = 0.67
    """It comes back at this share; so one that is right half of the time does not come and go."""
    sample_every: int = 11
    """While no grade is good enough, one layer in so many is still predicted, to be scored without moving a
    byte. Which ones is drawn, so that all layers of a model get their turn."""

    def __post_init__(self) -> None:
        assert min(self.window, self.sample_every) >= 1, self
        assert 0 <= self.least_share <= self.return_share <= 1, self


class _Grade:
    """The newest outcomes of guesses of one grade."""

    def __init__(self, rules: TrustRules) -> None:
        self._rules = rules
        self._outcomes: deque[bool] = deque(maxlen=rules.window)
        self._num_right = 0
        self.good = True

    def add(self, right: bool) -> None:
        if len(self._outcomes) == self._rules.window:
            self._num_right -= self._outcomes[0]
        self._outcomes.append(right)
        self._num_right += right
        if self.judged:
            least = self._rules.least_share if self.good else self._rules.return_share
            self.good = self._num_right >= least * len(self._outcomes)

    @property
    def judged(self) -> bool:
        """Whether there is enough to judge by; before that it is good."""
        return 2 * len(self._outcomes) >= self._rules.window


class GuessTrust:
    """Keeps the score of guesses by grade. Only experts that were missing when they were guessed count.

    Whether any guesses are worth fetching is decided by the grades that occur among the newest ones.
    """

    def __init__(self, rules: TrustRules | None = None) -> None:
        self._rules = rules or TrustRules()
        self._grades = [_Grade(self._rules) for _ in range(NUM_GRADES)]
        self._newest: deque[int] = deque(maxlen=self._rules.window)
        self._times = [0] * NUM_GRADES
        self._draw = Random(0)
        self.on = True
        """Whether any guesses are worth fetching."""
        self.num_switches = 0

    def score(self, grade: int, right: bool) -> None:
        """A guess of this grade was right or wrong, whether it was fetched or not."""
        self._grades[grade].add(right)
        if len(self._newest) == self._rules.window:
            self._times[self._newest[0]] -= 1
        self._newest.append(grade)
        self._times[grade] += 1
        judged = [g for g, times in zip(self._grades, self._times, strict=True) if times and g.judged]
        on = not judged or any(g.good for g in judged)
        self.num_switches += on != self.on
        self.on = on

    def trusts(self, grade: int) -> bool:
        """Whether to fetch guesses of this grade."""
        return self.on and self._grades[grade].good

    def sample(self) -> bool:
        """Whether this layer is predicted although nothing is fetched. Ask once a layer; False while on."""
        return not self.on and self._draw.randrange(self._rules.sample_every) == 0
