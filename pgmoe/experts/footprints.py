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
PASS_BYTES = 4 * 2**20
"""For the tokens of a pass that are looked at, the last ones of each sequence."""
TABLE_BYTES = 4 * 2**20
"""For what kinds of tokens used; and MOST_KINDS, each of which has an entry in a dictionary as well."""
MOST_KINDS = 8192
KIND_BYTES = 256
"""Of such an entry, more or less."""
MOST_PROMPT_TOKENS = 128
"""Of a prompt, the last ones, by which it is judged."""


class Footprints:
    """Told of each pass and of each layer in it. For the computing thread alone.

    A footprint (L, E) says for each expert how likely a token of the sequence is to use it. Who has run is
    judged by what it used; who has not, by its prompt's tokens: each by what it used the last time that it
    was computed, whoever's it was, since routing depends on the token itself for the most part (Xue et al.
    2024, arXiv 2402.01739: context-independent specialisation). For decoders: a token is remembered if all
    layers saw it. All that is kept is bounded.
    """

    def __init__(
        self, experts_per_layer: Sequence[int], num_sequences: int, *, num_tokens: int | None = None
    ) -> None:
        """Remembers so many sequences and kinds of tokens (as TABLE_BYTES hold), those that ran last."""
        self._num_experts = tuple(experts_per_layer)
        self._shape = (len(experts_per_layer), max(experts_per_layer))
        size = self._shape[0] * self._shape[1]
        if num_tokens is None:
            num_tokens = max(1, min(MOST_KINDS, 8 * TABLE_BYTES // size))
        self._recent_SLE: Floats = np.zeros((num_sequences, *self._shape), np.float32)
        self._known_SL = np.zeros((num_sequences, self._shape[0]), bool)
        self._sequences: _Rows[str] = _Rows(num_sequences)
        self._bits_VB = np.zeros((num_tokens, -(-size // 8)), np.uint8)
        self._tokens: _Rows[int] = _Rows(num_tokens)
        self._usual_LE: Floats = np.zeros(self._shape, np.float32)
        self._pass: _Pass | None = None

    @staticmethod
    def num_bytes(experts_per_layer: Sequence[int], num_sequences: int) -> int:
        """What one of these takes at most."""
        size = len(experts_per_layer) * max(experts_per_layer)
        table = TABLE_BYTES + MOST_KINDS * KIND_BYTES
        return table + 2 * PASS_BYTES + (2 * num_sequences + 2) * 4 * size

    def begin(self, sequences: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
        """A pass of these sequences' tokens begins, in this order."""
        self._fold()
        self._pass = _Pass(sequences[: len(self._recent_SLE)], token_ids, self._shape)

    def forget(self, sequence: str) -> None:
        """Another sequence may have its name from now on."""
        self._fold()
        if sequence in self._sequences:
            self._clear(self._sequences[sequence])

    def enter(self, layer: int, ids_NK: Tensor) -> None:
        """A layer used these experts (on the host; those at or above its number stand for none)."""
        if self._pass is not None and len(ids_NK) == self._pass.num_tokens:
            self._pass.enter(layer, ids_NK.numpy(), self._num_experts[layer])

    def of(self, sequence: str, token_ids: Sequence[int]) -> Floats:
        """The footprint (L, E) of a sequence of these tokens; zeros as long as nothing has run."""
        self._fold()
        row = self._sequences.get(sequence)
        if row is not None and self._known_SL[row].any():
            recent_LE: Floats = self._recent_SLE[row]
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
        used_SLE, counts_S1 = ended.means(), np.array(ended.counts)[:, None]
        rows_S = [self._place(sequence) for sequence in ended.sequences]
        newest_SL = np.where(self._known_SL[rows_S], 1 - (1 - NEWEST_RATE) ** counts_S1, 1.0)
        weights_SL1 = (newest_SL * ended.entered)[:, :, None].astype(np.float32)
        self._recent_SLE[rows_S] += weights_SL1 * (used_SLE - self._recent_SLE[rows_S])
        self._known_SL[rows_S] |= ended.entered
        usual_L1 = USUAL_RATE * ended.entered[:, None]
        self._usual_LE += usual_L1 * (used_SLE.mean(axis=0) - self._usual_LE)
        if ended.entered.all():  # else a layer would stand there as one that uses nothing
            rows = [self._tokens.place(token) for token in ended.token_ids]
            self._bits_VB[rows] = np.packbits(ended.used_TLE.reshape(len(rows), -1), axis=1)

    def _place(self, sequence: str) -> int:
        """Its row; a new one knows nothing."""
        is_new = sequence not in self._sequences
        row = self._sequences.place(sequence)
        if is_new:
            self._clear(row)
        return row

    def _clear(self, row: int) -> None:
        self._recent_SLE[row] = 0
        self._known_SL[row] = False


class _Pass:
    """One pass, layer by layer."""

    def __init__(
        self, sequences: Sequence[str], token_ids: Sequence[Sequence[int]], shape: tuple[int, int]
    ) -> None:
        most_rows = PASS_BYTES // (shape[0] * (shape[1] + 1))
        each = max(1, most_rows // len(sequences))
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
