"""Our engine with timers around its parts, beside itself without them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgmoe.bench.arms.engine import EngineArm, LoadedEngine
from pgmoe.bench.job import Answer, Job, Place, Profile
from pgmoe.bench.part_timer import call_cost_s
from pgmoe.bench.processor_time import ProcessorTime
from pgmoe.bench.token_parts import part_timer, timed_parts
from pgmoe.metrics.stats import ExpertStats


@dataclass(frozen=True)
class ProfiledArm:
    """An engine whose answers say where their time went."""

    engine: EngineArm

    @property
    def name(self) -> str:
        """See Arm."""
        return self.engine.name

    @property
    def most_tokens(self) -> int | None:
        """See Arm."""
        return self.engine.most_tokens

    def open(self, place: Place) -> ProfiledEngine:
        """See Arm. Raises as the engine does."""
        return ProfiledEngine(self.engine.open(place))


class ProfiledEngine:
    """See LoadedArm. Does every job twice, in one order and then in the other."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._plain_first = False

    def warm_up(self, job: Job) -> Answer:
        """See LoadedArm; without timers."""
        return self._engine.warm_up(job)

    def answer(self, job: Job) -> Answer:
        """The answer with timers, its profile with it. Of two tokens at least."""
        self._plain_first = not self._plain_first
        plain = self._engine.answer(job) if self._plain_first else None
        meter = _Meter(self._engine.stats, job.num_tokens)
        with timed_parts(meter.timer):
            answer = self._engine.answer(job, meter.after_token)
        plain = plain or self._engine.answer(job)
        assert meter.profile is not None
        return replace(answer, profile=replace(meter.profile, plain_decode_s=plain.decode_s))

    def files(self) -> list[str]:
        """See LoadedArm."""
        return self._engine.files()

    def close(self) -> None:
        """See LoadedArm."""
        self._engine.close()


class _Meter:
    """Reads all that is counted at the first token and at the last."""

    def __init__(self, stats: ExpertStats, num_tokens: int) -> None:
        self.timer = part_timer()
        self.profile: Profile | None = None
        """Once the last token is there."""
        self._stats = stats
        self._num_tokens = num_tokens
        self._processor = ProcessorTime(0.0, 0.0)
        self._busy_s = 0.0

    def after_token(self, number: int) -> None:
        """So many tokens are there. Not part of any time measured."""
        if number == 1:
            self._processor, self._busy_s = ProcessorTime.so_far(), self._link_busy_s()
            self.timer.restart()
        elif number == self._num_tokens:
            parts_s, num_calls = self.timer.read(), self.timer.num_calls
            processor = ProcessorTime.so_far() - self._processor
            self.profile = Profile(
                parts_s=parts_s,
                compute_cpu_s=processor.compute_s,
                reader_cpu_s=processor.readers_s,
                link_busy_s=self._link_busy_s() - self._busy_s,
                timers_s=num_calls * call_cost_s(),
            )

    def _link_busy_s(self) -> float:
        return sum(link.busy_s for link in self._stats.links.values())
