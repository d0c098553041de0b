"""Penalties on tokens that were seen already, for several answers at once.

Only the tokens that an answer has seen are touched, whatever the vocabulary.
Shape letters: R rows, V vocabulary, U distinct tokens of one answer, E those of all answers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgmoe.sampling_params import SamplingParams


class SeenTokens:
    """The distinct tokens of a prompt and its answer, and how often each stands in the answer."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._slots = {token_id: slot for slot, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        self._ids = array("q", self._slots)
        self._counts = array("q", bytes(8 * len(self._ids)))

    def add(self, token_id: int) -> None:
        """The answer goes on with this token."""
        slot = self._slots.setdefault(token_id, len(self._ids))
        if slot == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0)
        self._counts[slot] += 1

    def table(self) -> NDArray[np.int64]:
        """(2, U): the tokens, and their counts in the answer, 0 for those of the prompt alone."""
        return np.stack([np.array(self._ids, dtype=np.int64), np.array(self._counts, dtype=np.int64)])


def seen_tokens(params: SamplingParams, prompt_token_ids: Sequence[int]) -> SeenTokens | None:
    """What has to be remembered for these penalties; None if there are none.

    Presence and frequency look at the answer alone, repetition at the prompt, too.
    """
    if params.repetition_penalty != 1:
        return SeenTokens(prompt_token_ids)
    return SeenTokens(()) if params.presence_penalty or params.frequency_penalty else None


def penalise(scores_RV: Tensor, seen_R: Sequence[tuple[SamplingParams, SeenTokens | None]]) -> None:
    """Change `scores_RV` (fp32) in place: first by repetition, then by frequency and presence.

    score = score * repetition if score < 0 else score / repetition     (arXiv 1909.05858, transformers)
    score -= frequency * count + presence * (count > 0)
    (platform.openai.com/docs/advanced-usage, "Frequency and presence penalties"). Tokens past the vocabulary,
    as an encoder's prompt may have, are left out.
    """
    rows = [(row, params, seen.table()) for row, (params, seen) in enumerate(seen_R) if seen is not None]
    if not rows:
        return
    lengths = [table.shape[1] for _, _, table in rows]
    ids_E, counts_E = np.concatenate([table for _, _, table in rows], axis=1)
    rows_E = np.repeat(np.array([row for row, _, _ in rows]), lengths)
    factors_3 = [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for _, p, _ in rows]
    factors_3E = np.repeat(np.array(factors_3, dtype=np.float32).T, lengths, axis=1)
    inside_E = ids_E < scores_RV.shape[1]
    where_2E = np.stack([rows_E, ids_E])[:, inside_E]
    numbers_4E = np.concatenate([factors_3E, counts_E[None].astype(np.float32)])[:, inside_E]
    at_row_E, at_id_E = torch.from_numpy(where_2E).to(scores_RV.device)
    repetition_E, frequency_E, presence_E, answer_E = torch.from_numpy(numbers_4E).to(scores_RV.device)
    scores_E = scores_RV[at_row_E, at_id_E]
    scores_E = torch.where(scores_E < 0, scores_E * repetition_E, scores_E / repetition_E)
    scores_RV[at_row_E, at_id_E] = scores_E - frequency_E * answer_E - presence_E * (answer_E > 0)
