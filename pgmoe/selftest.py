"""Does offloading change anything? Every expert is computed a second time from freshly read weights.

Each MoE layer of an offloaded run is recomputed from its very input, with weights read from the checkpoint
by plain file reads into fresh memory: no slot, no cache, no direct I/O. If every layer's output is the same
to the bit, so is the whole run's. Only the experts in use are held, so it works for models of any size.

It checks that the right bytes are in the right slots and are added up in the right order. The formula of an
expert is the engine's own here, too; that one is held against transformers by the project's tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pgmoe.config import EngineConfig
from pgmoe.cpu.kernel_tokens import KernelTokens
from pgmoe.engine.engine import Engine
from pgmoe.engine.free_memory import free_memory
from pgmoe.errors import ExpertReadError
from pgmoe.experts.expander import Expander
from pgmoe.experts.ffn import apply_ffn
from pgmoe.experts.grouping import TokenGroups
from pgmoe.experts.tokens import tokens_of
from pgmoe.layout import ExpertLayer
from pgmoe.memory import page_aligned
from pgmoe.models.moe import RoutedExperts
from pgmoe.request import Request, RequestOutput, SamplingParams

PROMPT_TOKENS = 32
RESIDENT_SHARE = 0.8
"""Of the device's free memory: a model up to this is also compared with itself, all experts resident."""

Progress = Callable[[str, int, int], None]
"""Called with (what is done now, tokens or bytes so far, in all)."""


@dataclass(frozen=True)
class Difference:
    """The first call of an MoE layer whose output is not what it should be."""

    layer: str
    call: int
    """0 for the prompt, then the answer's tokens."""
    largest: float
    """Largest absolute difference of an output element."""


@dataclass(frozen=True)
class SelfTestReport:
    """What was compared, and what was found."""

    num_layers: int
    num_tokens: int
    num_experts_checked: int
    difference: Difference | None
    resident_equal: bool | None
    """All experts resident gave the same tokens and probabilities; None if they do not fit."""

    @property
    def passed(self) -> bool:
        """Whether nothing differed."""
        return self.difference is None and self.resident_equal is not False


class LayerCheck:
    """Stands before one layer's experts and recomputes what they return."""

    def __init__(self, layer: ExpertLayer, routed: RoutedExperts, expander: Expander) -> None:
        self.layer = layer
        self.expander = expander
        self.routed = routed
        self.num_calls = 0
        self.num_experts = 0
        self.difference: Difference | None = None

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The experts' own answer, after comparing it."""
        found = self.routed(hidden, top_k_index, top_k_weights)
        expected = self._expected(hidden, top_k_index, top_k_weights)
        if self.difference is None and not torch.equal(found, expected):
            largest = (found.float() - expected.float()).abs().max().item()
            self.difference = Difference(self.layer.name, self.num_calls, largest)
        self.num_calls += 1
        return found

    def _expected(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        ids_NK = top_k_index.cpu()
        if len(hidden) == 1:
            token = tokens_of(self.layer, hidden, top_k_index, ids_NK)
            for expert in token.experts:
                token.apply({expert: self._read(expert, hidden.device)})
            return token.weighted_sum(top_k_weights)
        groups = TokenGroups.of(ids_NK, self.layer.num_experts, hidden.device)
        places, out = groups.split(groups.places), torch.zeros_like(hidden)
        few = KernelTokens.takes(self.layer, hidden, ids_NK)
        for expert, rows_T in groups.split(groups.tokens).items():
            y = self._output(expert, hidden[rows_T], few=few)
            y = y * top_k_weights.flatten()[places[expert], None]
            out.index_add_(0, rows_T, y.to(hidden.dtype))
        return out

    def _output(self, expert: int, x_TD: Tensor, *, few: bool) -> Tensor:
        weights = self._read(expert, x_TD.device)
        if not few:
            return apply_ffn(self.layer.ffn, weights, x_TD)
        tokens = KernelTokens(self.layer, x_TD, torch.full((len(x_TD), 1), expert))
        tokens.apply({expert: weights})
        return tokens.weighted_sum(torch.ones(len(x_TD), 1))

    def _read(self, expert: int, device: torch.device) -> Mapping[str, Tensor]:
        self.num_experts += 1
        return self.expander.weights(self.layer, read_plainly(self.layer, expert, device))


def read_plainly(layer: ExpertLayer, expert: int, device: torch.device) -> dict[str, Tensor]:
    """One expert's tensors by ordinary reads. Raises ExpertReadError if the file is too short.

    They start where a slot has them: libraries may choose other kernels for other alignments.
    """
    blob, starts = page_aligned(layer.layout.slot_bytes), layer.layout.starts(layer.extents[expert])
    memory = blob.numpy().data
    for extent in layer.extents[expert]:
        begin = starts[extent.tensor] + extent.tensor_offset
        with open(extent.path, "rb") as file:
            file.seek(extent.offset)
            if file.readinto(memory[begin : begin + extent.nbytes]) != extent.nbytes:
                raise ExpertReadError(
                    f"expert {expert} of {layer.name}: {extent.tensor} is cut short in {extent.path}"
                )
    on_device = page_aligned(blob.nbytes, device=device).copy_(blob)
    return layer.layout.views(on_device, starts)


def run_selftest(config: EngineConfig, num_tokens: int, progress: Progress | None = None) -> SelfTestReport:
    """Compare a prompt and a greedy answer of `num_tokens`, then all experts resident with that.

    Raises ConfigError or CheckpointError as an engine would.
    """
    report, answer, fits = _offloaded(config, num_tokens, progress)  # the memory of its engine is free again
    if not fits:
        return report
    return replace(report, resident_equal=_resident(config, num_tokens, progress) == answer)


def _offloaded(
    config: EngineConfig, num_tokens: int, progress: Progress | None
) -> tuple[SelfTestReport, list[object], bool]:
    """What the checks of all layers found, the answer's substance, and whether all experts would fit."""
    copying = None if progress is None else partial(progress, "experts to host memory")
    engine = Engine(config, copying)
    try:
        checks = _put_checks(engine)
        pieces = _answer(engine, num_tokens, "offloaded run", progress)
        room = free_memory(torch.device(engine.info.device)) * RESIDENT_SHARE
        fits = engine.info.total_bytes < room
    finally:
        engine.close()
    found = [c.difference for c in checks if c.difference is not None]
    report = SelfTestReport(
        num_layers=len(checks),
        num_tokens=len(pieces),
        num_experts_checked=sum(c.num_experts for c in checks),
        difference=min(found, key=lambda d: d.call) if found else None,  # the earliest layer among equals
        resident_equal=None,
    )
    return report, _substance(pieces), fits


def _put_checks(engine: Engine) -> list[LayerCheck]:
    checks = []
    expander = Expander(engine.loaded.layers, torch.device(engine.info.device))
    for socket, layer in zip(engine.loaded.sockets, engine.loaded.layers, strict=True):
        routed: RoutedExperts = socket.module.routed_experts  # type: ignore[assignment]
        checks.append(LayerCheck(layer, routed, expander))
        socket.module.routed_experts = checks[-1]  # type: ignore[assignment]
    return checks


def _answer(engine: Engine, num_tokens: int, run: str, progress: Progress | None) -> list[RequestOutput]:
    generator = torch.Generator().manual_seed(0)
    length = min(PROMPT_TOKENS, engine.info.max_model_len // 2)
    prompt = torch.randint(engine.info.vocab_size, (length,), generator=generator)
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True, logprobs=5)
    request = Request(request_id="selftest", prompt_token_ids=tuple(prompt.tolist()), params=params)
    engine.add(engine.accept(request))
    pieces: list[RequestOutput] = []
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            pieces.append(output.piece)
            if progress is not None:
                progress(run, len(pieces), num_tokens)
    return pieces


def _resident(config: EngineConfig, num_tokens: int, progress: Progress | None) -> list[object]:
    engine = Engine(config.model_copy(update={"device_memory": "100%", "host_memory": "0"}))
    try:
        return _substance(_answer(engine, num_tokens, "resident run", progress))
    finally:
        engine.close()


def _substance(pieces: list[RequestOutput]) -> list[object]:
    return [(p.token_ids, p.logprobs) for p in pieces]
