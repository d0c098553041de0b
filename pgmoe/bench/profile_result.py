"""A token's time by parts, and what it stands beside: CPU, link, experts found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgmoe.bench.compare import Series
from pgmoe.bench.job import Answer, Profile, Traffic
from pgmoe.bench.result import Record
from pgmoe.bench.statistics import Spread


@dataclass(frozen=True)
class ProfiledSeries:
    """All rounds of one share and gating. Spreads are milliseconds per token, unless they say otherwise."""

    share: float
    """Per cent of the experts' bytes in memory."""
    num_slots: int
    belady_bytes: float
    """Per token: what the best cache of so many slots would have had to read."""
    series: Series

    @property
    def name(self) -> str:
        """Share and gating."""
        return self.series.name

    @property
    def token_ms(self) -> Spread:
        """The whole token, timers included."""
        return self._ms(lambda profile: sum(profile.parts_s.values()))

    @property
    def parts_ms(self) -> dict[str, Spread]:
        """By part. In each round they add up to the token; their medians nearly do."""
        return {part: self._part_ms(part) for part in self._rounds[0][1].parts_s}

    @property
    def middle_ms(self) -> dict[str, float]:
        """By part, in the round whose tokens took the median time: these add up."""
        rounds = sorted(self._rounds, key=lambda r: sum(r[1].parts_s.values()) / (len(r[0].tokens) - 1))
        answer, profile = rounds[(len(rounds) - 1) // 2]
        return {part: 1e3 * s / (len(answer.tokens) - 1) for part, s in profile.parts_s.items()}

    @property
    def compute_cpu_ms(self) -> Spread:
        """CPU time of the computing threads, all cores together."""
        return self._ms(lambda profile: profile.compute_cpu_s)

    @property
    def reader_cpu_ms(self) -> Spread:
        """CPU time of the threads that read experts."""
        return self._ms(lambda profile: profile.reader_cpu_s)

    @property
    def link_busy_ms(self) -> Spread:
        """In which at least one expert was on its way."""
        return self._ms(lambda profile: profile.link_busy_s)

    @property
    def hit_rate(self) -> Spread:
        """Experts that were there when asked for, of all asked for."""
        return Spread.of([t.hits / max(t.hits + t.misses, 1) for t in self._traffic])

    @property
    def read_bytes(self) -> Spread:
        """Bytes read per token."""
        return Spread.of(self._read_bytes)

    @property
    def timers_ms(self) -> Spread:
        """What the timers themselves took, by the number of their calls."""
        return self._ms(lambda profile: profile.timers_s)

    @property
    def timers_cost(self) -> Spread:
        """By how much the timers lengthened the answer: 0.01 is a hundredth. Noise where it is negative."""
        return Spread.of([a.decode_s / p.plain_decode_s - 1 for a, p in self._rounds])

    def link_least_ms(self, bytes_per_s: tuple[float, ...]) -> Spread:
        """What the bytes read would have taken at the disk's rate of each round."""
        rounds = zip(self._read_bytes, bytes_per_s, strict=True)
        return Spread.of([1e3 * num_bytes / rate for num_bytes, rate in rounds])

    def belady_least_ms(self, bytes_per_s: tuple[float, ...]) -> Spread:
        """The same for what the best cache would have had to read."""
        return Spread.of([1e3 * self.belady_bytes / rate for rate in bytes_per_s])

    def _part_ms(self, part: str) -> Spread:
        return self._ms(lambda profile: profile.parts_s[part])

    def _ms(self, seconds: Callable[[Profile], float]) -> Spread:
        return Spread.of([1e3 * seconds(p) / (len(a.tokens) - 1) for a, p in self._rounds])

    @property
    def _read_bytes(self) -> list[float]:
        rounds = zip(self._rounds, self._traffic, strict=True)
        return [t.num_bytes / (len(a.tokens) - 1) for (a, _), t in rounds]

    @property
    def _rounds(self) -> list[tuple[Answer, Profile]]:
        answers = [measured.answer for measured in self.series.rounds]
        return [(a, a.profile) for a in answers if a.profile is not None]

    @property
    def _traffic(self) -> list[Traffic]:
        traffic = [measured.answer.traffic for measured in self.series.rounds]
        return [t for t in traffic if t is not None]


@dataclass(frozen=True)
class ProfileResult(Record):
    """Shares and gatings beside each other."""

    disk_bytes_per_s: tuple[float, ...]
    """The disk's own rate at the start of each round."""
    profiled: tuple[ProfiledSeries, ...]
