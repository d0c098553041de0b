"""Our engine with a share of the experts in slots."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.arms.stepwise import answer_stepwise
from pgmoe.bench.job import Answer, Job, Place, Traffic
from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.moe import RoutedExperts
from pgmoe.request import Request, SamplingParams


@dataclass(frozen=True)
class EngineArm:
    """Experts in slots within `device_memory`, the others in the tier below."""

    name: str
    device_memory: str = "100%"
    host_memory: str = "0"
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedEngine:
        """See Arm."""
        return LoadedEngine(
            EngineConfig(
                model=place.model,
                device=place.device,
                device_memory=self.device_memory,
                host_memory=self.host_memory,
                num_threads=place.num_threads,
            )
        )


class LoadedEngine:
    """See LoadedArm. A forced answer goes through the engine's model, any other through its steps."""

    def __init__(self, config: EngineConfig) -> None:
        self._engine = Engine(config)
        self._device = torch.device(self._engine.info.device)
        self._at_first = _traffic(self._engine.stats.experts)

    def warm_up(self, job: Job) -> Answer:
        """Where all experts fit, bring all of them in."""
        slots = self._engine.stats.experts.slots
        if slots == sum(layer.num_experts for layer in self._engine.loaded.layers):
            self._touch_all()
            assert self._engine.stats.experts.resident == slots
        return self.answer(job)

    def answer(self, job: Job) -> Answer:
        """See LoadedArm."""
        clock = TokenClock(self._mark_first)
        if job.forced is None:
            answer = self._generate(job, clock)
        else:
            answer = answer_stepwise(self._engine.loaded.model, self._device, job, clock)
        return replace(answer, traffic=_difference(_traffic(self._engine.stats.experts), self._at_first))

    def files(self) -> list[str]:
        """None but the checkpoint."""
        return []

    def close(self) -> None:
        """See LoadedArm."""
        self._engine.close()

    def _generate(self, job: Job, clock: TokenClock) -> Answer:
        params = SamplingParams(max_tokens=job.num_tokens, temperature=0, ignore_eos=True)
        request = Request(request_id="bench", prompt_token_ids=job.prompt, params=params)
        self._engine.add(self._engine.accept(request))
        while self._engine.has_work:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error
                assert output.piece is not None
                for token in output.piece.token_ids:
                    clock.take(token)
        return clock.answer()

    def _mark_first(self, num_tokens: int) -> None:
        if num_tokens == 1:
            self._at_first = _traffic(self._engine.stats.experts)

    @torch.inference_mode()
    def _touch_all(self) -> None:
        """Ask every layer for every expert, for a row of zeros each."""
        loaded = self._engine.loaded
        width = loaded.model.config.get_text_config().hidden_size
        for socket, layer in zip(loaded.sockets, loaded.layers, strict=True):
            routed: RoutedExperts = socket.module.routed_experts  # type: ignore[assignment]
            experts = torch.arange(layer.num_experts, device=self._device)[:, None]
            hidden = torch.zeros(layer.num_experts, width, dtype=layer.dtype, device=self._device)
            routed(hidden, experts, torch.zeros_like(experts, dtype=layer.dtype))


def _traffic(stats: ExpertStats) -> Traffic:
    return Traffic(stats.num_hits, stats.num_misses, stats.num_bytes, stats.stall_s)


def _difference(after: Traffic, before: Traffic) -> Traffic:
    return Traffic(
        after.hits - before.hits,
        after.misses - before.misses,
        after.num_bytes - before.num_bytes,
        after.stall_s - before.stall_s,
    )
