"""Which experts a token stream uses, found by running it once: what a roofline and an oracle know."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from torch import Tensor

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.job import Job, Place
from pgmoe.errors import PgmoeError
from pgmoe.layout import ExpertLayer
from pgmoe.models.moe import RoutedExperts
from pgmoe.simulation.belady import belady_misses
from pgmoe.simulation.demand import demands
from pgmoe.trace import Trace, TracedLayer, TracedStep


@dataclass(frozen=True)
class RoutedStream:
    """A job with its answer's tokens, and the experts that each forward pass asked for."""

    job: Job
    """Forced: where the model was to choose, the tokens that it chose."""
    trace: Trace
    """One step for the prompt, then one for each token but the last."""

    def belady_bytes(self, num_slots: int) -> float:
        """Bytes per token after the first that the best cache would have read, had it known all this.

        In the middle of a run: the stream was there once before. What the tokens add to the fewest misses
        of all that came before them.
        """
        prompt, *tokens = self.trace.steps
        before = demands(replace(self.trace, steps=(prompt, *tokens, prompt)))
        misses = belady_misses((*before, *demands(replace(self.trace, steps=tuple(tokens)))), num_slots)
        return (misses - belady_misses(before, num_slots)) * self.trace.expert_bytes / len(tokens)

    def repeated(self, lengths: list[int]) -> Trace:
        """The job done several times with so many tokens: sequences `1`, `2`, ..."""
        steps = [
            TracedStep(f"{number}", step.layers)
            for number, length in enumerate(lengths, start=1)
            for step in self.trace.steps[:length]
        ]
        return replace(self.trace, steps=tuple(steps))


def record_stream(place: Place, job: Job) -> RoutedStream:
    """Run the job once, all experts resident, in a process that ends with it. Raises PgmoeError."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(_record, place, job).result()
        except BrokenProcessPool:
            raise PgmoeError(
                "the process that records the stream's routing with all experts in memory was killed; the "
                "model is probably larger than this machine's memory"
            ) from None


class _Recorder:
    """Notes what a layer is asked for on its way to `inner`."""

    def __init__(self, index: int, layer: ExpertLayer, inner: RoutedExperts, log: list[TracedLayer]) -> None:
        self._index = index
        self._num_experts = layer.num_experts
        self._inner = inner
        self._log = log

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See RoutedExperts."""
        pairs = [
            [(e, weight) for e, weight in zip(ids, weights, strict=True) if e < self._num_experts]
            for ids, weights in zip(top_k_index.tolist(), top_k_weights.tolist(), strict=True)
        ]
        ids = tuple(tuple(e for e, _ in row) for row in pairs)
        self._log.append(TracedLayer(self._index, ids, tuple(tuple(w for _, w in row) for row in pairs)))
        return self._inner(hidden, top_k_index, top_k_weights)


def _record(place: Place, job: Job) -> RoutedStream:
    loaded = EngineArm("recorder").open(place)
    try:
        log: list[TracedLayer] = []
        loaded.wrap(lambda index, layer, inner: _Recorder(index, layer, inner, log))
        answer = loaded.answer(job)
        layers = loaded.layers
    finally:
        loaded.close()
    # The last token is not fed: there are as many forward passes as tokens, the prompt's the first.
    steps = [TracedStep("1", tuple(log[i : i + len(layers)])) for i in range(0, len(log), len(layers))]
    assert len(steps) == job.num_tokens, (len(log), len(layers), job.num_tokens)
    return RoutedStream(
        job=job if job.forced is not None else replace(job, forced=answer.tokens),
        trace=Trace(
            model=place.model,
            experts_per_layer=tuple(layer.num_experts for layer in layers),
            top_k=max(layer.top_k for layer in layers),
            expert_bytes=max(layer.layout.weight_bytes for layer in layers),
            steps=tuple(steps),
        ),
    )
