"""Speed against the number of streams, and how much of what the hardware allows ours reaches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pgmoe.bench.job import Measured, Memory
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread, paired_ratio, percentile
from pgmoe.bench.streams import Steps, StreamsAnswer


@dataclass(frozen=True)
class Times:
    """Of a round: the middle, and what all but one in twenty stay below."""

    p50_s: float
    p95_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Zeros for none."""
        if not seconds:
            return cls(0.0, 0.0)
        return cls(percentile(seconds, 50), percentile(seconds, 95))


@dataclass(frozen=True)
class StreamsRound:
    """One job of many requests, done once by one arm."""

    seconds: float
    """From the first request to the last token."""
    num_tokens: int
    """Of all answers."""
    first_token: Times
    """From a request to its first token."""
    inter_token: Times
    """From a token to the next of the same answer."""
    num_same: int
    """Answers that are those of our engine with all experts resident."""
    memory: Memory
    steps: Steps
    link_bytes_per_s: float
    num_moe_layers: int

    @classmethod
    def of(cls, measured: Measured[StreamsAnswer], expected: StreamsAnswer) -> StreamsRound:
        """What is kept of a measurement; its answers are compared to those expected."""
        found = measured.answer
        gaps = [gap_s for answer in found.answers for gap_s in answer.gaps_s]
        pairs = zip(found.answers, expected.answers, strict=True)
        return cls(
            seconds=found.seconds,
            num_tokens=sum(len(answer.tokens) for answer in found.answers),
            first_token=Times.of([answer.arrivals_s[0] for answer in found.answers]),
            inter_token=Times.of(gaps),
            num_same=sum(one.tokens == other.tokens for one, other in pairs),
            memory=measured.memory,
            steps=found.steps,
            link_bytes_per_s=found.link_bytes_per_s,
            num_moe_layers=found.num_moe_layers,
        )

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.num_tokens / self.seconds

    @property
    def experts_per_layer(self) -> float:
        """Distinct ones that a step used in a layer, on average over the steps."""
        used = self.steps.num_experts
        return sum(used) / len(used) / self.num_moe_layers

    def bound_s(self, resident: StreamsRound) -> float:
        """The least time for these steps: each as long as with all experts resident, or as its reads take.

        `resident` is the same job in the same round. A step there is like one here if it brought as many
        tokens and as many first ones; the median of those is its time, that of all where there is none.
        """
        times: dict[tuple[int, int], list[float]] = defaultdict(list)
        kept = resident.steps
        for seconds, *shape in zip(kept.seconds, kept.num_tokens, kept.num_first, strict=True):
            times[shape[0], shape[1]].append(seconds)
        middle = {shape: median(like) for shape, like in times.items()}
        other = median(kept.seconds)
        steps = zip(self.steps.num_tokens, self.steps.num_first, self.steps.missing_bytes, strict=True)
        return sum(
            max(middle.get((tokens, first), other), missing / self.link_bytes_per_s)
            for tokens, first, missing in steps
        )


@dataclass(frozen=True)
class StreamsSeries:
    """All rounds of one arm."""

    name: str
    share: float | None
    """Per cent of the experts in memory; None for other engines, which hold all."""
    rounds: tuple[StreamsRound, ...]

    @property
    def speeds(self) -> list[float]:
        """Tokens/s of each round."""
        return [r.tokens_per_s for r in self.rounds]

    def spread(self, value: Callable[[StreamsRound], float]) -> Spread:
        """Of a value of each round."""
        return Spread.of([value(r) for r in self.rounds])


@dataclass(frozen=True)
class StreamsPoint:
    """All arms with so many streams, measured in the same rounds."""

    num_streams: int
    num_requests: int
    series: tuple[StreamsSeries, ...]
    """Our engine with all experts resident first."""

    def of(self, arm: str) -> StreamsSeries | None:
        """Of this arm; None if it failed with so many streams."""
        return next((s for s in self.series if s.name == arm), None)

    @property
    def resident(self) -> StreamsSeries:
        """Our engine with all experts resident."""
        return self.series[0]

    def ratio(self, series: StreamsSeries) -> Spread:
        """Times as fast as our engine with all experts resident, round by round."""
        return paired_ratio(series.speeds, self.resident.speeds)

    def efficiency(self, series: StreamsSeries) -> Spread | None:
        """The least time that the hardware allows over the measured one, round by round.

        None where no link brings experts.
        """
        if not all(r.link_bytes_per_s for r in series.rounds):
            return None
        pairs = zip(series.rounds, self.resident.rounds, strict=True)
        return Spread.of([one.bound_s(resident) / one.seconds for one, resident in pairs])


@dataclass(frozen=True)
class ThroughputResult(Record):
    """One point for each number of streams."""

    by_streams: tuple[StreamsPoint, ...]
    emulated: bool
    """Whether the link of ours was an emulated one."""

    @property
    def arms(self) -> tuple[str, ...]:
        """In the order in which they were measured."""
        return tuple(dict.fromkeys(series.name for point in self.by_streams for series in point.series))
