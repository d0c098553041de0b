"""transformers' continuous batching, all experts resident."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from pgmoe.bench.arms.closed_loop import ClosedLoop, Sent
from pgmoe.bench.arms.peers import load_transformers
from pgmoe.bench.job import Place
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.streams import StreamsAnswer, StreamsJob
from pgmoe.errors import GenerationFailed

PAGE_TOKENS = 32
MOST_STEP_TOKENS = 512
"""In one step, as in ours. Attention has a dense mask over all of them, which grows with their square."""
PATIENCE_S = 5.0


@dataclass(frozen=True)
class TransformersStreamsArm:
    """Its own scheduler and paged cache, with room for every stream."""

    num_streams: int
    longest: int
    """Most tokens of a prompt and its answer."""
    model: str | None = None
    """Checkpoint folder, if another than that of the others."""
    experts: str = "grouped_mm"
    name: str = "transformers"
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedTransformersStreams:
        """See AnyArm."""
        torch.set_num_threads(place.num_threads)
        own = [] if self.model is None else [str(path) for path in weight_files(self.model)]
        place = replace(place, model=self.model or place.model)
        return LoadedTransformersStreams(
            load_transformers(place, self.experts, {"": place.device}), self, own
        )


class LoadedTransformersStreams:
    """See AnyLoadedArm. Its generation loop runs in a thread of its own and sleeps between jobs."""

    def __init__(self, model: PreTrainedModel, arm: TransformersStreamsArm, own_files: list[str]) -> None:
        """`own_files`: of its weights, where these are not the other arms'."""
        blocks_each = -(-arm.longest // PAGE_TOKENS) + 1
        self._own_files = own_files
        # Without an end token none stops an answer.
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        settings = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=arm.num_streams * blocks_each,
            max_batch_tokens=max(MOST_STEP_TOKENS, arm.num_streams),
            max_requests_per_batch=arm.num_streams,
            allow_block_sharing=False,
        )
        with torch.inference_mode():  # the loop's thread takes this over
            self._manager: Any = model.init_continuous_batching(  # type: ignore[operator]
                generation_config=generation, continuous_batching_config=settings
            )
            self._manager.start()

    def warm_up(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm."""
        return self.answer(job)

    def answer(self, job: StreamsJob) -> StreamsAnswer:
        """See AnyLoadedArm. The loop itself notes when a token comes."""
        loop = ClosedLoop(job)
        jobs_own = f"{time.perf_counter()}/"
        for sent in loop.begin():
            self._add(jobs_own, sent)
        while not loop.is_done:
            result = self._manager.get_result(timeout=PATIENCE_S)
            if result is None and not self._manager.is_running():
                raise GenerationFailed("transformers' generation loop has ended")
            if result is None or not result.is_finished():
                continue
            if result.error is not None:
                raise GenerationFailed(f"transformers' generation failed: {result.error}")
            key = result.request_id.removeprefix(jobs_own)
            sent_next = loop.take(key, result.generated_tokens, result.timestamps)
            if sent_next is not None:
                self._add(jobs_own, sent_next)
        return loop.answer()

    def files(self) -> list[str]:
        """See AnyLoadedArm."""
        return self._own_files

    def close(self) -> None:
        """See AnyLoadedArm."""
        self._manager.stop(block=True, timeout=PATIENCE_S)

    def _add(self, jobs_own: str, sent: Sent) -> None:
        self._manager.add_request(
            list(sent.ask.prompt),
            request_id=jobs_own + sent.key,
            max_new_tokens=sent.ask.num_tokens,
            record_timestamps=True,
        )
