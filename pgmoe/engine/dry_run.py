"""What a model holds in memory, found by running it on the meta device: nothing is computed.

So no family needs a formula of its own, and what counts is what is really kept.
Shape letters as in `experts.compute`; R rows: one for each token and expert that it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.cpu.kernel_tokens import most_rows, row_elements, suits
from pgmoe.cpu.kernels import BLOCK, available
from pgmoe.cpu.products import packed_rows
from pgmoe.engine.block_manager import BLOCK_TOKENS
from pgmoe.engine.dry_attention import DryAttention
from pgmoe.engine.kv_size import KvSize
from pgmoe.engine.live_bytes import Forms, LiveBytes
from pgmoe.engine.model_facts import ModelFacts
from pgmoe.engine.paged_runner import PagedRunner
from pgmoe.engine.paging import layer_shapes
from pgmoe.engine.part import Part
from pgmoe.engine.sequence_runner import SequenceRunner
from pgmoe.errors import UnsupportedModel
from pgmoe.experts.expander import Expander
from pgmoe.experts.ffn import ROWS, apply_ffn
from pgmoe.experts.grouping import TokenGroups
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool
from pgmoe.layout import ExpertLayer
from pgmoe.models.families import find_sockets
from pgmoe.models.loader import ModelPlan
from pgmoe.models.mixed import mixed
from pgmoe.models.moe_blocks import router_of
from pgmoe.models.paged import PagedModel, ignore_length

META = torch.device("meta")
PROBES = (2, 3)
"""Lengths whose difference tells what a token takes."""


class DryRun:
    """Answers about one checkpoint's memory, by running the plan's skeleton."""

    def __init__(self, plan: ModelPlan, max_running: int, *, on_cpu: bool, paged: bool = True) -> None:
        """`paged`: whether keys and values are to be in pages, if the model can.

        Raises UnsupportedModel for an encoder-decoder whose attention cannot be, or is not to be, paged.
        """
        self._model = plan.skeleton
        self._facts = ModelFacts(plan.skeleton)
        self._max_running = max_running
        self._on_cpu = on_cpu
        self._forms: Forms = {}
        self._workspaces: dict[tuple[int, int], int] = {}
        expander = Expander(plan.layers, META)
        experts = [_DryExperts(layer, expander) for layer in plan.layers]
        for socket, routed in zip(find_sockets(plan.skeleton), experts, strict=True):
            socket.module.routed_experts = routed  # type: ignore[assignment]
        for module in plan.skeleton.modules():
            found = router_of(module)
            if type(module) is nn.Linear:
                module.__class__ = _DryLinear
            elif found is not None and not isinstance(router := found[1], nn.Linear | _DryRouter):
                kind: Any = type(router)
                router.__class__ = mixed("Dry", _DryRouter, kind)
        self._weights = [*_weights(plan.skeleton), *(t for e in experts for t in e.stored.values())]
        ignore_length(plan.skeleton)
        with LiveBytes(forms=self._forms):  # for the forms
            shapes = layer_shapes(plan.skeleton) if paged else None
        self.shapes = shapes
        """What each layer keeps of a token in the pool; None where each sequence has a cache of its own."""
        # An encoder attends by torch.
        self._by_torch = self.shapes is None or self._facts.is_encoder_decoder or not _suit(plan)
        if self.shapes is None and self._facts.is_encoder_decoder:
            why = (
                "its attention cannot be paged" if paged else "batch_invariant is for decoders; leave it out"
            )
            raise UnsupportedModel(f"{type(self._model).__name__}: {why}")

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return self._facts.vocab_size

    def kv_size(self) -> KvSize:
        """What one sequence keeps between its steps."""
        if self.shapes is not None:
            token_bytes = sum(shape.token_bytes for shape in self.shapes)
            return KvSize(token_bytes, keeps_prompt=self._facts.is_encoder_decoder)
        short, long = (self._kept(length) for length in PROBES)
        token_bytes = (long - short) // (PROBES[1] - PROBES[0])
        return KvSize(token_bytes, fixed_bytes=short - PROBES[0] * token_bytes)

    @property
    def by_torch(self) -> bool:
        """Whether torch's library multiplies matrices, as far as the steps show that were asked for."""
        return self._by_torch

    def workspace_bytes(self, num_tokens: int, prefill_chunk: int) -> int:
        """Most bytes that a step holds besides weights and what is kept, with sequences of `num_tokens`, and
        prompts cut into chunks of so many tokens.

        Of an encoder-decoder, prompt and answer are that long each.
        """
        key = num_tokens, prefill_chunk
        if key not in self._workspaces:
            self._workspaces[key] = self._workspace_bytes(*key)
        return self._workspaces[key]

    def _workspace_bytes(self, num_tokens: int, prefill_chunk: int) -> int:
        if self.shapes is None:
            return self._peak_alone(num_tokens)
        chunk = min(prefill_chunk, num_tokens)
        num_chunks = min(self._max_running, -(-prefill_chunk // num_tokens))
        lone = [self._part(num_tokens, 1) for _ in range(self._max_running - num_chunks)]
        steps = [[self._part(num_tokens, chunk)] * num_chunks]
        if self._facts.is_encoder_decoder:
            steps += [[self._part(1, 1, num_prompt=num_tokens)] * num_chunks]
        return max(self._peak([*parts, *lone]) for parts in steps)

    def _part(self, end: int, num_tokens: int, num_prompt: int | None = None) -> Part:
        """Tokens up to `end`, of a sequence whose blocks are scattered."""
        start = end - num_tokens
        if self._facts.is_encoder_decoder:
            num_prompt = end if num_prompt is None else num_prompt
            start = max(1, start) if num_prompt == end else 0
        return Part(
            sequence_id="",
            token_ids=(0,) * (end - start),
            start=start,
            blocks=(0,) * end,
            context_blocks=(0,) * (num_prompt or 0),
            prompt_token_ids=(0,) * (num_prompt or 0),
        )

    def _peak(self, parts: Sequence[Part]) -> int:
        """Bytes that a step of these holds at most."""
        assert self.shapes is not None
        pool = KvPool(self.shapes, 1, BLOCK_TOKENS, META)
        attention = DryAttention(pool, on_cpu=self._on_cpu)
        pages = Pages(pool, attention)
        runner = PagedRunner(PagedModel(self._model, pages), pages, pool, META, _nobody)
        kept = [tensor for layer in pool.layers for tensor in (layer.keys, layer.values)]
        with LiveBytes(kept, self._weights, self._forms) as live:
            _checked(runner.run(parts))
        self._by_torch |= attention.gathered
        peak: int = live.peak
        return peak

    def _peak_alone(self, num_tokens: int) -> int:
        """The same of a step that reads a whole prompt, beyond what is kept of it."""
        runner = SequenceRunner(self._model, META, _nobody)
        with LiveBytes((), self._weights, self._forms) as live:
            _checked(runner.run([_prompt(num_tokens)]))
        peak: int = live.peak
        return peak - _num_bytes(_tensors(runner.kept()))

    def _kept(self, num_tokens: int) -> int:
        runner = SequenceRunner(self._model, META, _nobody)
        _checked(runner.run([_prompt(num_tokens)]))
        return _num_bytes(_tensors(runner.kept()))


def _suit(plan: ModelPlan) -> bool:
    """Whether kernels for CPUs take all experts and linear layers here."""
    linear = [module for module in plan.skeleton.modules() if isinstance(module, nn.Linear)]
    experts = all((widths := layer.swiglu_widths) and suits(layer, widths[0]) for layer in plan.layers)
    return available() and experts and not any(layer.in_features % BLOCK for layer in linear)


def _prompt(num_tokens: int) -> Part:
    return Part(sequence_id="", token_ids=(0,) * num_tokens, start=0)


class _DryLinear(nn.Linear):
    """Also makes what a kernel packs."""

    def forward(self, x: Tensor) -> Tensor:
        packed = _packed(x, self.weight)
        out = super().forward(x)
        del packed
        return out


class _DryRouter(nn.Module):
    """The same, mixed into a family's router."""

    def forward(self, x: Tensor, *args: object) -> Any:
        packed = _packed(x, getattr(self, "weight", None))
        out = super().forward(x, *args)
        del packed
        return out


def _packed(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None or weight.ndim != 2 or x.dtype != torch.bfloat16:
        return x.new_empty(0)
    num_outputs, num_inputs = weight.shape
    return x.new_empty(packed_rows(x.numel() // num_inputs, num_outputs) * num_inputs)


class _DryExperts:
    """Makes the tensors that PooledExperts makes at most.

    By torch, all tokens have one expert in common; by kernels, as many run together as can. Ids are kept
    until the next pass, as the ledger keeps them.
    """

    _ids: Tensor

    def __init__(self, layer: ExpertLayer, expander: Expander) -> None:
        self._ffn, self._layer = layer.ffn, layer
        self.stored = {r.name: torch.empty(r.shape, dtype=r.dtype, device=META) for r in layer.layout.regions}
        self._weights = expander.weights(layer, self.stored)

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        self._ids = top_k_index
        self._by_kernels(hidden, *top_k_index.shape)
        places_R = torch.argsort(top_k_index.flatten())
        groups = TokenGroups([0], [len(places_R)], places_R, places_R // top_k_index.shape[1])
        x_RD = hidden[groups.tokens]
        y_RD = torch.empty_like(x_RD)
        x_TD = hidden.new_empty(-(-len(hidden) // ROWS) * ROWS, hidden.shape[1])  # padded, as on a CPU
        y_RD[: len(hidden)].copy_(apply_ffn(self._ffn, self._weights, x_TD)[: len(hidden)])
        return groups.add_up(y_RD, top_k_weights)

    def _by_kernels(self, hidden: Tensor, num_tokens: int, top_k: int) -> None:
        """What they make, where a CPU has them, and give back."""
        width = hidden.shape[1]
        if suits(self._layer, width):
            y_CD = hidden.new_empty(num_tokens * top_k, width)
            num_rows = most_rows(self._layer, num_tokens, top_k)
            scratch = hidden.new_empty(num_rows * row_elements(self._layer, width))
            out_ND = torch.empty_like(hidden)
            del y_CD, scratch, out_ND


def _nobody(sequences: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
    """Is told of a pass."""


def _checked(outcomes: Sequence[Tensor | Exception]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


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
