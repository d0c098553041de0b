"""Our engine, asked for many answers at once."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pgmoe.bench.arms.closed_loop import ClosedLoop, Sent
from pgmoe.bench.arms.engine import EngineArm, LoadedEngine
from pgmoe.bench.job import Place
from pgmoe.bench.streams import Steps, StreamsAnswer, StreamsJob
from pgmoe.engine.engine import StepOutput
from pgmoe.layout import ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from pgmoe.request import Request, SamplingParams


@dataclass(frozen=True)
class EngineStreamsArm:
    """An engine that gives every stream a place: `max_running` among its options says how many there are."""

    engine: EngineArm
    most_tokens: int | None = None

    @property
    def name(self) -> str:
        """See AnyArm."""
        return self.engine.name

    def open(self, place: Place) -> LoadedEngineStreams:
        """See AnyArm. Raises as the engine does."""
        return LoadedEngineStreams(self.engine.open(place))


class LoadedEngineStreams:
    """See AnyLoadedArm."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._engine = loaded.engine

    def warm_up(self, job: StreamsJob) -> StreamsAnswer:
        """Where all experts fit, bring all of them in."""
        self._loaded.fill()
        return self.answer(job)

    def answer(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm. Nothing is found in the prefix cache that an earlier job left."""
        self._engine.forget_prefixes()
        meter = _Meter(self._loaded.layers, self._loaded.stats)
        loop = ClosedLoop(job)
        for sent in loop.begin():
            self._add(sent)
        while not loop.is_done:
            meter.begin()
            outputs = self._engine.step()
            meter.end(outputs)
            self._take(loop, outputs)
        return loop.answer(meter.steps(), self._link_bytes_per_s(), len(self._loaded.layers))

    def files(self) -> list[str]:
        """See AnyLoadedArm."""
        return self._loaded.files()

    def close(self) -> None:
        """See AnyLoadedArm."""
        self._loaded.close()

    def _add(self, sent: Sent) -> None:
        params = SamplingParams(max_tokens=sent.ask.num_tokens, temperature=0, ignore_eos=True)
        request = Request(request_id=sent.key, prompt_token_ids=sent.ask.prompt, params=params)
        self._engine.add(self._engine.accept(request))

    def _take(self, loop: ClosedLoop, outputs: list[StepOutput]) -> None:
        following = []
        for output in outputs:
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            following.append(loop.take(output.request_id, output.piece.token_ids))
        for sent in following:
            if sent is not None:
                self._add(sent)

    def _link_bytes_per_s(self) -> float:
        """Of the slowest measured hop; 0 where all experts have slots."""
        stats = self._loaded.stats
        if stats.slots == sum(layer.num_experts for layer in self._loaded.layers):
            return 0.0
        return min((link.bandwidth for link in stats.links.values() if link.bandwidth), default=0.0)


class _Meter:
    """What each step took and used."""

    def __init__(self, layers: tuple[ExpertLayer, ...], stats: ExpertStats) -> None:
        self._weight_bytes = [layer.layout.weight_bytes for layer in layers]
        self._stats = stats
        self._rows: list[tuple[float, int, int, int, int]] = []
        self._begun: set[str] = set()
        """Requests that have a token."""
        self._missing_bytes = self._num_experts = 0
        self._begin_s = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._missing_bytes, self._num_experts = self._used()
        self._begin_s = time.perf_counter()

    def end(self, outputs: list[StepOutput]) -> None:
        """It has ended, and brought these."""
        seconds = time.perf_counter() - self._begin_s
        missing_bytes, num_experts = self._used()
        first = {output.request_id for output in outputs} - self._begun
        self._begun |= first
        self._rows.append(
            (
                round(seconds, 6),
                sum(len(output.piece.token_ids) for output in outputs if output.piece is not None),
                len(first),
                missing_bytes - self._missing_bytes,
                num_experts - self._num_experts,
            )
        )

    def steps(self) -> Steps:
        """All so far."""
        return Steps(*zip(*self._rows, strict=True))

    def _used(self) -> tuple[int, int]:
        """So far: bytes read for who used them, be it beforehand; experts used."""
        misses, useful = self._stats.misses, self._stats.prefetch_bytes["useful"]
        on_demand = sum(misses[layer] * size for layer, size in enumerate(self._weight_bytes))
        return on_demand + useful, self._stats.num_hits + self._stats.num_misses
