"""Runs a step as one forward pass of all its sequences' tokens, over the pool of keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgmoe.engine.device_faults import check_device
from pgmoe.engine.part import BeginPass, Outcome, Part
from pgmoe.kv.packed import PackedTokens, Segment
from pgmoe.kv.pages import Pages
from pgmoe.kv.pool import KvPool
from pgmoe.models.paged import PagedModel


class PagedRunner:
    """A Runner for models whose attention reads from pages."""

    def __init__(
        self, model: PagedModel, pages: Pages, pool: KvPool, device: torch.device, begin_pass: BeginPass
    ) -> None:
        self._model = model
        self._pages = pages
        self._pool = pool
        self._device = device
        self._begin_pass = begin_pass

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> list[Outcome]:
        """See Runner. What fails together is tried again part by part, to find whose fault it is."""
        try:
            return list(self._pass(parts))
        except Exception as error:  # whatever it is: it is told to whom it concerns
            check_device(error)
            if len(parts) == 1:
                return [error]
        return [outcome for part in parts for outcome in self.run([part])]

    def forget(self, sequence_id: str) -> None:
        """Nothing: blocks are free when they are given to another."""

    def _pass(self, parts: Sequence[Part]) -> Sequence[Tensor]:
        new_prompts = [self._encode(part) for part in parts if part.prompt_token_ids and part.start == 0]
        packed = PackedTokens([_segment(part) for part in parts], self._pool.block_tokens, self._device)
        self._begin_pass([part.sequence_id for part in parts], [part.token_ids for part in parts])
        self._pages.begin(packed)
        try:
            token_ids = [token for part in parts for token in part.token_ids]
            rows = [
                row
                for part, first in zip(parts, packed.first_rows, strict=True)
                for row in _rows(part, first)
            ]
            logits_RV = self._model.run(
                torch.tensor(token_ids, device=self._device),
                torch.tensor(rows, device=self._device),
                new_prompts,
            )
        finally:
            self._pages.end()
        return torch.split(logits_RV, [len(_rows(part, 0)) for part in parts])

    def _encode(self, part: Part) -> Tensor:
        self._begin_pass([part.sequence_id], [part.prompt_token_ids])
        return self._model.encode(part.prompt_token_ids)


def _segment(part: Part) -> Segment:
    return Segment(
        num_tokens=len(part.token_ids),
        start=part.start,
        blocks=part.blocks,
        context_blocks=part.context_blocks,
        num_context=len(part.prompt_token_ids),
        new_context=part.start == 0,
    )


def _rows(part: Part, first: int) -> range:
    """Of the pass, those whose logits are wanted."""
    end = first + len(part.token_ids)
    return range(first if part.all_logits else end - 1, end)
