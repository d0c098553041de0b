"""Which experts running sequences use, and which ones a sequence that has not run yet is likely to use.

Shape letters: N tokens of a pass, K experts per token, T tokens of it that are looked at, S sequences,
V tokens of the vocabulary that are remembered, L MoE layers, E experts of the largest layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

KeyT = TypeVar("KeyT", bound=Hashable)
Floats = npt.NDArray[np.floating]

NEWEST_RATE = 0.1
"""How much a sequence's newest token weighs in its footprint, which remembers some 10 tokens."""
USUAL_RATE = 0.02
"""How much one pass weighs in what is usual."""
MOST_ROWS = 512
"""Tokens of a pass that are looked at, the last ones of each sequence."""
MOST_PROMPT_TOKENS = 128
"""Of a prompt, the last ones, by which it is judged."""


class Footprints:
    """Told of each pass and of each layer in it. For the computing thread alone.

    A footprint (L, E) says for each expert how likely a token of the sequence is to use it. Who has run is
    judged by what it used; who has not, by its prompt's tokens: each by what it used the last time that it
    was computed, whoever's it was, since routing depends on the token itself for the most part (Xue et al.
    2024, arXiv 2402.01739, section 4: context-independent specialisation). All that is kept is bounded.
    """

    def __init__(
        self, experts_per_layer: Sequence[int], num_sequences: int, *, num_tokens: int = 8192
    ) -> None:
        """Remembers so many sequences and kinds of tokens, those that ran last."""
        self._num_experts = tuple(experts_per_layer)
        self._shape = (len(experts_per_layer), max(experts_per_layer))
        size = self._shape[0] * self._shape[1]
        self._recent_SLE: Floats = np.zeros((num_sequences, *self._shape), np.float32)
        self._sequences: _Rows[str] = _Rows(num_sequences)
        self._bits_VB = np.zeros((num_tokens, -(-size // 8)), np.uint8)
        self._tokens: _Rows[int] = _Rows(num_tokens)
        self._usual_LE: Floats = np.zeros(self._shape, np.float32)
        self._pass: _Pass | None = None

    def begin(self, sequences: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
        """A pass of these sequences' tokens begins, in this order."""
        self._fold()
        self._pass = _Pass(sequences[: len(self._recent_SLE)], token_ids, self._shape)

    def enter(self, layer: int, ids_NK: Tensor) -> None:
        """A layer used these experts (on the host; those at or above its number stand for none)."""
        if self._pass is not None and len(ids_NK) == self._pass.num_tokens:
            self._pass.enter(layer, ids_NK.numpy(), self._num_experts[layer])

    def of(self, sequence: str, token_ids: Sequence[int]) -> Floats:
        """The footprint (L, E) of a sequence of these tokens; zeros as long as nothing has run."""
        self._fold()
        if sequence in self._sequences:
            recent_LE: Floats = self._recent_SLE[self._sequences[sequence]]
            return recent_LE
        newest = token_ids[-MOST_PROMPT_TOKENS:]
        rows = [self._tokens[token] for token in newest if token in self._tokens]
        used_TX = np.unpackbits(self._bits_VB[rows], axis=1, count=self._usual_LE.size)
        known_LE = used_TX.sum(axis=0, dtype=np.float32).reshape(self._shape)
        mean_LE: Floats = (known_LE + (len(newest) - len(rows)) * self._usual_LE) / len(newest)
        return mean_LE

    def _fold(self) -> None:
        """Learn from the pass that is over. Layers that it did not enter keep what is known of them."""
        ended, self._pass = self._pass, None
        if ended is None or not ended.entered.any():
            return
        layers_L1 = ended.entered[:, None]
        for sequence, count, used_LE in zip(ended.sequences, ended.counts, ended.means(), strict=True):
            known = sequence in self._sequences
            recent_LE = self._recent_SLE[self._sequences.place(sequence)]
            weight = 1 - (1 - NEWEST_RATE) ** count if known else 1.0
            recent_LE *= known
            recent_LE += weight * layers_L1 * (used_LE - recent_LE)
            self._usual_LE += USUAL_RATE * layers_L1 * (used_LE - self._usual_LE)
        if ended.entered.all():  # else a layer would stand there as one that uses nothing
            rows = [self._tokens.place(token) for token in ended.token_ids]
            self._bits_VB[rows] = np.packbits(ended.used_TLE.reshape(len(rows), -1), axis=1)


class _Pass:
    """One pass, layer by layer."""

    def __init__(
        self, sequences: Sequence[str], token_ids: Sequence[Sequence[int]], shape: tuple[int, int]
    ) -> None:
        each = max(1, MOST_ROWS // len(sequences))
        ends = np.cumsum([len(ids) for ids in token_ids])
        self.num_tokens = int(ends[-1])
        self.sequences = sequences
        kept = [ids[-each:] for ids in token_ids[: len(sequences)]]
        self.counts = [len(ids) for ids in kept]
        self.token_ids = [token for ids in kept for token in ids]
        pairs = zip(self.counts, ends, strict=False)
        self._rows_T = np.concatenate([np.arange(end - count, end) for count, end in pairs])
        self._with_none = np.zeros((len(self._rows_T), shape[0], shape[1] + 1), bool)
        self.used_TLE = self._with_none[:, :, :-1]
        self.entered = np.zeros(shape[0], bool)

    def enter(self, layer: int, ids_NK: npt.NDArray[np.int64], num_experts: int) -> None:
        ids_TK = ids_NK[self._rows_T]
        ids_TK = np.where(ids_TK < num_experts, ids_TK, self._with_none.shape[2] - 1)
        self._with_none[np.arange(len(ids_TK))[:, None], layer, ids_TK] = True
        self.entered[layer] = True

    def means(self) -> Floats:
        """(S, L, E): of each sequence, the share of its tokens that used an expert."""
        starts = np.cumsum([0, *self.counts[:-1]])
        sums_SLE = np.add.reduceat(self.used_TLE, starts, axis=0, dtype=np.float32)
        return sums_SLE / np.array(self.counts, np.float32)[:, None, None]


class _Rows(OrderedDict[KeyT, int]):
    """Rows of a table by key; who was placed longest ago loses its row to a newcomer."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self._num_rows = num_rows

    def place(self, key: KeyT) -> int:
        """Its row, now the newest."""
        if key not in self:
            self[key] = len(self) if len(self) < self._num_rows else self.popitem(last=False)[1]
        self.move_to_end(key)
        return self[key]
