"""transformers' own models, whole in memory or with accelerate's disk offload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.arms.stepwise import answer_stepwise
from pgmoe.bench.job import Answer, Job, Place
from pgmoe.bench.page_cache import drop_from_page_cache, weight_files
from pgmoe.errors import UnsupportedModel
from pgmoe.models.loader import ModelPlan, read_plan
from pgmoe.models.pre_gate import pre_gate


@dataclass(frozen=True)
class TransformersArm:
    """All experts resident, computed by one of transformers' implementations (`eager`, `grouped_mm`)."""

    experts: str
    most_tokens: int | None = None

    @property
    def name(self) -> str:
        """See Arm."""
        return f"transformers {self.experts}"

    def open(self, place: Place) -> LoadedTransformers:
        """See Arm."""
        torch.set_num_threads(place.num_threads)
        return LoadedTransformers(load_transformers(place, self.experts, {"": place.device}))


@dataclass(frozen=True)
class AccelerateArm:
    """Dense weights in memory, every layer's experts offloaded to disk by accelerate.

    A weak baseline: it reads all experts of a layer to use a few, through the page cache. So from the second
    token on its disk is RAM, as long as that is free; `cold` drops its files before every token, as on a
    machine whose memory is needed elsewhere, and does not count the time which that takes.
    """

    cold: bool = True
    most_tokens: int | None = 9
    label: str | None = None
    """Its name, if another than that of its mode."""

    @property
    def name(self) -> str:
        """See Arm."""
        return self.label or f"accelerate, {'disk' if self.cold else 'page cache'}"

    def open(self, place: Place) -> LoadedTransformers:
        """See Arm."""
        torch.set_num_threads(place.num_threads)
        folder = TemporaryDirectory(prefix="accelerate-", dir=place.scratch)
        device_map = experts_on_disk(read_plan(place.model), place.device)
        model = load_transformers(place, "eager", device_map, folder.name)
        return LoadedTransformers(model, folder, weight_files(place.model) if self.cold else None)


class LoadedTransformers:
    """See LoadedArm. An answer that is not forced comes from `generate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        offload: TemporaryDirectory[str] | None = None,
        cold_files: Sequence[Path] | None = None,
    ) -> None:
        self._model = model
        self._offload = offload
        self._cold_files = cold_files

    def warm_up(self, job: Job) -> Answer:
        """See LoadedArm."""
        return self.answer(job)

    def answer(self, job: Job) -> Answer:
        """See LoadedArm."""
        clock = TokenClock(self._drop if self._cold_files is not None else None)
        if job.forced is not None:
            return answer_stepwise(self._model, self._model.device, job, clock)
        # Without an end token `generate` neither stops at it nor suppresses it.
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=job.num_tokens, eos_token_id=None, pad_token_id=0
        )
        ids = torch.tensor([job.prompt], device=self._model.device)
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=torch.ones_like(ids), streamer=ClockStreamer(clock))  # type: ignore[operator]
        answer = clock.answer()
        assert len(answer.tokens) == job.num_tokens, (len(answer.tokens), job.num_tokens)
        return answer

    def files(self) -> list[str]:
        """What accelerate wrote."""
        if self._offload is None:
            return []
        return [str(path) for path in Path(self._offload.name).rglob("*") if path.is_file()]

    def close(self) -> None:
        """See LoadedArm."""
        if self._offload is not None:
            self._offload.cleanup()

    def _drop(self, num_tokens: int) -> None:
        drop_from_page_cache([*(self._cold_files or ()), *self.files()])


class ClockStreamer(BaseStreamer):
    """Hands each token of `generate` to a clock; the prompt comes first and is no token of the answer."""

    def __init__(self, clock: TokenClock) -> None:
        self._clock = clock
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        """Called by `generate`."""
        if self._in_prompt:
            self._in_prompt = False
        else:
            self._clock.take(int(value))

    def end(self) -> None:
        """Called by `generate`."""


def experts_on_disk(plan: ModelPlan, device: str) -> dict[str, str]:
    """accelerate's device map: the experts' modules on disk, everything else on `device`."""
    with torch.device("meta"):
        model = plan.model_class(plan.config)
    experts = {layer.name for layer in plan.layers}
    places: dict[str, str] = {}

    def visit(name: str, module: nn.Module) -> None:
        if name in experts:
            places[name] = "disk"
        elif not any(e.startswith(f"{name}.") for e in experts):
            places[name] = device
        else:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            places.update({f"{name}.{tensor}": device for tensor, _ in own})
            for child, inner in module.named_children():
                visit(f"{name}.{child}", inner)

    for child, inner in model.named_children():
        visit(child, inner)
    return places


def load_transformers(
    place: Place, experts: str, device_map: dict[str, str], offload_folder: str | None = None
) -> PreTrainedModel:
    """transformers' model of the place's checkpoint. Raises UnsupportedModel."""
    offload: dict[str, Any] = {"offload_folder": offload_folder} if offload_folder else {}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place.model,
            dtype="auto",
            device_map=device_map,
            experts_implementation=experts,
            trust_remote_code=False,
            **offload,
        )
    except ValueError as error:
        raise UnsupportedModel(f"{place.model}: transformers cannot load it: {error}") from error
    pre_gate(model)
    return model
