"""One model run in an engine: everything that offloading could change, to compare to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import parse_device
from pgmoe.engine.device_plan import LEAST_CHUNK
from pgmoe.engine.engine import Engine
from pgmoe.engine.measured_needs import measuring
from pgmoe.engine.memory_plan import ExpertShape
from pgmoe.engine.memory_plan import smallest_budget as smallest_device_memory
from pgmoe.metrics.stats import ExpertStats
from pgmoe.models.loader import read_plan
from pgmoe.request import Request, RequestOutput, SamplingParams


@dataclass(frozen=True)
class Prompts:
    """What a run is given. Ids above the usual special tokens."""

    one: tuple[int, ...]
    two: tuple[tuple[int, ...], tuple[int, ...]]
    """Of equal length."""

    @classmethod
    def random(cls, seed: int, vocab_size: int = 120) -> Prompts:
        """Fresh prompts: 11 tokens, and two of 7."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, vocab_size, (25,), generator=generator).tolist()
        return cls(tuple(ids[:11]), (tuple(ids[11:18]), tuple(ids[18:])))


@dataclass(frozen=True)
class Run:
    """What came out, and what it took."""

    logits_one: Tensor
    """(1, S, V), every position."""
    logits_two: Tensor
    """(2, S, V)."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of the tokens and, after each, of the likeliest others."""
    stats: ExpertStats
    num_slots: int

    def same_as(self, other: Run) -> None:
        """Assert that every number is the same to the bit."""
        assert torch.equal(self.logits_one, other.logits_one)
        assert torch.equal(self.logits_two, other.logits_two)
        assert self.token_ids == other.token_ids
        assert self.logprobs == other.logprobs


def run(folder: Path, prompts: Prompts, num_tokens: int = 6, **options: object) -> Run:
    """Load `folder` with these engine options (on the CPU unless they say otherwise), compute both prompts'
    logits and a greedy answer.
    """
    engine = Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", **options}))
    try:
        model = engine.loaded.model
        one, two = all_logits(model, [prompts.one]), all_logits(model, prompts.two)
        pieces = answer(engine, prompts.one, num_tokens)
        return Run(
            logits_one=one,
            logits_two=two,
            token_ids=tuple(t for p in pieces for t in p.token_ids),
            logprobs=tuple(
                v for p in pieces for t in p.logprobs for v in (t.logprob, *(x[2] for x in t.top))
            ),
            stats=engine.stats.experts,
            num_slots=engine.info.num_slots,
        )
    finally:
        engine.close()


@torch.no_grad()
def all_logits(model: PreTrainedModel, prompts: Any) -> Tensor:
    """Logits (B, S, V) of every position; an encoder-decoder's decoder reads the prompt reversed."""
    ids = torch.tensor(prompts, device=model.device)
    decoder = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(input_ids=ids, **decoder).logits
    return logits


def answer(
    engine: Engine,
    prompt: tuple[int, ...],
    num_tokens: int,
    after_piece: Callable[[], None] = lambda: None,
) -> list[RequestOutput]:
    """The pieces of a greedy answer, past any end-of-sequence token. Raises what ended the request."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True, logprobs=5)
    engine.add(engine.accept(Request(request_id="test", prompt_token_ids=prompt, params=params)))
    pieces: list[RequestOutput] = []
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            pieces.append(output.piece)
            after_piece()
    return pieces


def smallest_budget(folder: Path, device: str = "cpu", **options: Any) -> int:
    """The fewest bytes of device memory that work for this checkpoint with these engine options."""
    plan = read_plan(str(folder))
    on = parse_device(device)
    config = EngineConfig(model=str(folder), **options)
    chunk = LEAST_CHUNK if config.prefill_chunk == "auto" else config.prefill_chunk
    needs = measuring(plan, config, on)(chunk)
    return smallest_device_memory(ExpertShape.of(plan.layers, plan.loaded_bytes(on)), needs)
