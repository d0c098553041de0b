"""What options of our engine do to the same requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pgmoe.bench.job import Measured
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread, paired_ratio
from pgmoe.bench.streams import Answered, StreamsAnswer, StreamsJob
from pgmoe.bench.throughput_result import StreamsRound, Times


@dataclass(frozen=True)
class VariantRound:
    """One job of many requests, done once with these options."""

    streams: StreamsRound
    latency: Times
    """From a request to its last token."""
    longest_gap_s: float
    """The longest time from a token to the next of the same answer."""
    later_over_first: float | None
    """Time to the first token of a lone stream's later requests over that of its first one, the middle of
    them; None for one request, and for several streams, whose first requests wait for each other."""

    @classmethod
    def of(cls, measured: Measured[StreamsAnswer], job: StreamsJob, expected: StreamsAnswer) -> VariantRound:
        """What is kept of a measurement; its answers are compared to those expected."""
        answers = measured.answer.answers
        return cls(
            streams=StreamsRound.of(measured, expected),
            latency=Times.of([answer.arrivals_s[-1] for answer in answers]),
            longest_gap_s=max(gap_s for answer in answers for gap_s in answer.gaps_s),
            later_over_first=_later_over_first(answers) if len(job.streams) == 1 else None,
        )


@dataclass(frozen=True)
class Variant:
    """All rounds with the same options."""

    name: str
    """The options that set it apart."""
    rounds: tuple[VariantRound, ...]

    def spread(self, value: Callable[[VariantRound], float]) -> Spread:
        """Of a value of each round."""
        return Spread.of([value(r) for r in self.rounds])


@dataclass(frozen=True)
class VariantsResult(Record):
    """The same requests with different options, in interleaved rounds.

    The first variant is what the others are compared to.
    """

    num_streams: int
    num_requests: int
    variants: tuple[Variant, ...]

    def ratio(self, variant: Variant, value: Callable[[VariantRound], float]) -> Spread:
        """Of a value to the first variant's, round by round."""
        return paired_ratio([value(r) for r in variant.rounds], [value(r) for r in self.variants[0].rounds])


def _later_over_first(answers: Sequence[Answered]) -> float | None:
    first, *later = (answer.arrivals_s[0] for answer in answers)
    return median(later) / first if later else None
