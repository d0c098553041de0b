"""Our engine with a share of the experts in slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers import PreTrainedModel

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.arms.stepwise import answer_stepwise
from pgmoe.bench.job import Answer, Job, Place, Traffic
from pgmoe.bench.page_cache import weight_files
from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.layout import ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.moe import RoutedExperts
from pgmoe.models.socket import ExpertSocket
from pgmoe.request import Request, SamplingParams


@dataclass(frozen=True)
class EngineArm:
    """Experts in slots within `device_memory`, the others in the tier below."""

    name: str
    device_memory: str = "100%"
    host_memory: str = "0"
    options: tuple[tuple[str, str | int], ...] = ()
    """Further options of EngineConfig, by name; `model` for another folder: a pack of the same weights, or a
    twin."""
    most_tokens: int | None = None

    def open(self, place: Place) -> LoadedEngine:
        """See Arm."""
        options: dict[str, object] = {
            "model": place.model,
            "device": place.device,
            "device_memory": self.device_memory,
            "host_memory": self.host_memory,
            "num_threads": place.num_threads,
            **dict(self.options),
        }
        config = EngineConfig.parse(options)
        own = [] if config.model == place.model else [str(path) for path in weight_files(config.model)]
        return LoadedEngine(config, own)


class LoadedEngine:
    """See LoadedArm. A forced answer goes through the engine's model, any other through its steps."""

    def __init__(self, config: EngineConfig, own_files: list[str]) -> None:
        """`own_files`: of its weights, where these are not the other arms'."""
        self._engine = Engine(config)
        self._own_files = own_files
        self._device = torch.device(self._engine.info.device)
        self._at_first = self._traffic()
        self._num_answers = 0

    @property
    def engine(self) -> Engine:
        """The engine itself, for arms that ask it for many answers at once."""
        return self._engine

    @property
    def layers(self) -> tuple[ExpertLayer, ...]:
        """The model's MoE layers."""
        return self._engine.loaded.layers

    @property
    def model(self) -> PreTrainedModel:
        """transformers' model, whose experts are the engine's."""
        return self._engine.loaded.model

    @property
    def sockets(self) -> tuple[ExpertSocket, ...]:
        """Where its MoE layers take their experts."""
        return self._engine.loaded.sockets

    @property
    def stats(self) -> ExpertStats:
        """What the engine has counted so far."""
        return self._engine.stats.experts

    def wrap(self, make: Callable[[int, ExpertLayer, RoutedExperts], RoutedExperts]) -> None:
        """Put something of its own around every MoE layer's experts."""
        loaded = self._engine.loaded
        inner = [cast(RoutedExperts, socket.module.routed_experts) for socket in loaded.sockets]
        loaded.plug(lambda index, layer: make(index, layer, inner[index]))

    def warm_up(self, job: Job) -> Answer:
        """Where all experts fit, bring all of them in."""
        self.fill()
        return self.answer(job)

    def fill(self) -> None:
        """Bring all experts in, if there is a slot for each."""
        slots = self._engine.stats.experts.slots
        if slots == sum(layer.num_experts for layer in self._engine.loaded.layers):
            self._touch_all()
            assert self._engine.stats.experts.resident == slots

    def answer(self, job: Job, after_token: Callable[[int], None] = lambda number: None) -> Answer:
        """See LoadedArm; for `after_token` see TokenClock."""

        def mark(number: int) -> None:
            self._mark_first(number)
            after_token(number)

        clock = TokenClock(mark)
        self._num_answers += 1
        if job.forced is None:
            answer = self._generate(job, clock)
        else:
            answer = answer_stepwise(self._engine.loaded.model, self._device, job, clock, self._begin)
        return replace(answer, traffic=self._traffic().since(self._at_first))

    def files(self) -> list[str]:
        """A pack's or a twin's."""
        return self._own_files

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

    def _begin(self) -> None:
        self._engine.gating.begin([f"{self._num_answers}"])

    def _mark_first(self, num_tokens: int) -> None:
        if num_tokens == 1:
            self._at_first = self._traffic()

    def _traffic(self) -> Traffic:
        stats = self.stats
        return Traffic(
            hits=stats.num_hits,
            misses=stats.num_misses,
            num_bytes=stats.num_bytes,
            stall_s=stats.stall_s,
            useful_bytes=stats.prefetch_bytes["useful"],
            late_bytes=stats.prefetch_bytes["late"],
            wasted_bytes=stats.prefetch_bytes["wasted"],
            layer_stall_s=tuple(stats.layer_stall_s.get(layer, 0.0) for layer in range(len(self.layers))),
        )

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
