"""Runs a step sequence by sequence, each with a cache of transformers' own.

For families that keep more than keys and values of tokens (linear attention, Mamba layers), or whose
positions depend on a sequence's length. Experts are then not shared by the sequences of a step. Some of
transformers' caches give another state when a prompt is read in several chunks (MiniMax's).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgmoe.engine.device_faults import check_device
from pgmoe.engine.part import BeginPass, Outcome, Part
from pgmoe.errors import GenerationFailed
from pgmoe.models.kv_argument import kv_argument


class SequenceRunner:
    """A Runner for any decoder."""

    def __init__(self, model: PreTrainedModel, device: torch.device, begin_pass: BeginPass) -> None:
        self._model = model
        self._device = device
        self._begin_pass = begin_pass
        self._kv_argument = kv_argument(model)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._caches: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}
        """Tokens that are in each of them."""

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> list[Outcome]:
        """See Runner. A part that breaks off loses its cache: its outcome is GenerationFailed ever after."""
        return [self._run(part) for part in parts]

    def forget(self, sequence_id: str) -> None:
        """Free the cache."""
        self._caches.pop(sequence_id, None)
        self._lengths.pop(sequence_id, None)

    def kept(self) -> dict[str, Any]:
        """Every sequence's cache."""
        return self._caches

    def _run(self, part: Part) -> Outcome:
        cache = self._caches.pop(part.sequence_id, None)  # back only when the part is done
        if part.start == 0:
            cache = None
        elif cache is None or self._lengths[part.sequence_id] != part.start:
            return GenerationFailed("the generation was interrupted in the midst of a step; ask again")
        self._begin_pass([part.sequence_id], [part.token_ids])
        try:
            logits_TV, self._caches[part.sequence_id] = self._pass(part, cache)
        except Exception as error:  # whatever it is: it is told to whom it concerns
            check_device(error)
            return error
        self._lengths[part.sequence_id] = part.start + len(part.token_ids)
        return logits_TV

    def _pass(self, part: Part, cache: Any) -> tuple[Tensor, Any]:
        ids = torch.tensor([part.token_ids], device=self._device)
        keep = {"logits_to_keep": 0 if part.all_logits else 1} if self._keeps else {}
        options = {self._kv_argument: cache, "use_cache": True, **keep}
        output = self._model(input_ids=ids, **options)
        logits = output.logits[0] if part.all_logits else output.logits[0, -1:]
        return logits, getattr(output, self._kv_argument)
