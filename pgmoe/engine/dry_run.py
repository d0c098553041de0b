"""What a model holds in memory, found by running it on the meta device: nothing is computed.

So no family needs a formula of its own, and what counts is what transformers' caches really keep.
Shape letters as in `experts.compute`; R rows: one for each token and expert that it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.engine.kv_size import KvPart, KvSize
from pgmoe.engine.live_bytes import LiveBytes
from pgmoe.engine.runner import ModelRunner
from pgmoe.experts.compute import apply_ffn
from pgmoe.experts.expander import Expander
from pgmoe.experts.grouping import TokenGroups
from pgmoe.layout import ExpertLayer
from pgmoe.models.families import find_sockets
from pgmoe.models.loader import ModelPlan

META = torch.device("meta")
PROBES = (2, 3)
"""Lengths whose difference tells what a token takes; no sliding window is so short."""


@dataclass
class _DrySequence:
    """What the runner needs of a sequence."""

    prompt_token_ids: tuple[int, ...]
    pending: list[int]
    kv_cache: Any = None
    encoder_outputs: Any = None


class DryRun:
    """Answers about one checkpoint's memory, by running the plan's skeleton."""

    def __init__(self, plan: ModelPlan, prefill_chunk: int) -> None:
        self._model = plan.skeleton
        self._is_encoder_decoder = bool(plan.config.is_encoder_decoder)
        self._chunk = prefill_chunk
        expander = Expander(plan.layers, META)
        for socket, layer in zip(find_sockets(plan.skeleton), plan.layers, strict=True):
            socket.module.routed_experts = _DryExperts(layer, expander)  # type: ignore[assignment]

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return ModelRunner(self._model, META, self._chunk).vocab_size

    def kv_size(self) -> KvSize:
        """What one sequence keeps between its steps.

        Exact, but that a full sliding window counts as it is just after a step of a whole chunk.
        """
        short, long = PROBES
        a, b = self._sequence(short), self._sequence(long)
        for sequence in (a, b):
            self._feed(sequence, len(sequence.prompt_token_ids))
        grown = _num_bytes(_prompt_side(b)) - _num_bytes(_prompt_side(a))
        return KvSize(
            parts=self._parts(_decoder_cache(a), _decoder_cache(b)),
            prompt_token_bytes=grown // (long - short),
        )

    def workspace_bytes(self, num_tokens: int) -> int:
        """Most bytes that a step of a sequence of `num_tokens` holds besides weights and what it keeps.

        Of an encoder-decoder, prompt and answer are that long each.
        """
        if self._is_encoder_decoder:
            return max(self._peak(num_tokens, [1]), self._peak(num_tokens, [1, num_tokens - 2, 1]))
        chunk = min(self._chunk, num_tokens)
        before = min(chunk, num_tokens - chunk)
        return self._peak(num_tokens, [num_tokens - chunk - before, before, chunk])

    def _peak(self, num_prompt: int, feeds: list[int]) -> int:
        """Bytes beyond what is kept, in the last of these steps of so many tokens each."""
        sequence = self._sequence(num_prompt)
        for num_tokens in feeds[:-1]:
            self._feed(sequence, num_tokens)
        before = _num_bytes(_kept(sequence))
        with LiveBytes(known=_kept(sequence), constant=_weights(self._model)) as live:
            self._feed(sequence, feeds[-1])
        peak: int = live.peak
        return peak - (_num_bytes(_kept(sequence)) - before)

    def _sequence(self, num_prompt: int) -> _DrySequence:
        return _DrySequence(prompt_token_ids=(0,) * num_prompt, pending=[])

    def _feed(self, sequence: _DrySequence, num_tokens: int) -> Tensor | None:
        """One step of so many tokens; none without any."""
        if num_tokens <= 0:
            return None
        sequence.pending = [0] * num_tokens
        return ModelRunner(self._model, META, num_tokens).step(sequence)

    def _parts(self, short: Any, long: Any) -> tuple[KvPart, ...]:
        """Of two caches, as long as PROBES."""
        merged: dict[int | None, list[int]] = {}
        for a, b in zip(_cache_parts(short), _cache_parts(long), strict=True):
            window = a.sliding_window - 1 + self._chunk if getattr(a, "is_sliding", False) else None
            small, large = _num_bytes(_tensors(a)), _num_bytes(_tensors(b))
            token_bytes = (large - small) // (PROBES[1] - PROBES[0])
            total = merged.setdefault(window, [0, 0])
            total[0] += token_bytes
            total[1] += small - PROBES[0] * token_bytes
        return tuple(KvPart(t, fixed, window) for window, (t, fixed) in merged.items())


class _DryExperts:
    """Makes the tensors that PooledExperts makes at most: all tokens have one expert in common."""

    def __init__(self, layer: ExpertLayer, expander: Expander) -> None:
        self._ffn = layer.ffn
        stored = {r.name: torch.empty(r.shape, dtype=r.dtype, device=META) for r in layer.layout.regions}
        self._weights = expander.weights(layer, stored)

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        places_R = torch.argsort(top_k_index.flatten())
        groups = TokenGroups([0], [len(places_R)], places_R, places_R // top_k_index.shape[1])
        x_RD = hidden[groups.tokens]
        y_RD = torch.empty_like(x_RD)
        y_RD[: len(hidden)].copy_(apply_ffn(self._ffn, self._weights, x_RD[: len(hidden)]))
        return groups.add_up(y_RD, top_k_weights)


def _kept(sequence: _DrySequence) -> Iterator[Tensor]:
    return _tensors((sequence.kv_cache, sequence.encoder_outputs))


def _decoder_cache(sequence: _DrySequence) -> Any:
    return getattr(sequence.kv_cache, "self_attention_cache", sequence.kv_cache)


def _prompt_side(sequence: _DrySequence) -> Iterator[Tensor]:
    """What an encoder-decoder keeps of its prompt."""
    return _tensors((getattr(sequence.kv_cache, "cross_attention_cache", None), sequence.encoder_outputs))


def _cache_parts(cache: Any) -> list[Any]:
    """The cache's layers, and what it keeps besides them."""
    rest = {name: value for name, value in vars(cache).items() if name != "layers"}
    return [*cache.layers, rest]


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _tensors(found: Any) -> Iterator[Tensor]:
    """All tensors in an object of transformers' and what it holds."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _tensors(value)
    elif type(found).__module__.startswith("transformers."):
        yield from _tensors(vars(found))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages, each once."""
    found: dict[int, int] = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())
