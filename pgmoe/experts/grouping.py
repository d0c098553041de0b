"""Which tokens go to which expert, and back again.

Shape letters: N tokens, K experts per token, R rows (one for each token and expert that it uses), T rows of
one expert, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGroups:
    """A batch's choices sorted by expert, and those of one expert by token: one row each."""

    experts: list[int]
    """Those in use, ascending."""
    counts: list[int]
    """Rows of each."""
    places: Tensor
    """(R,): where in the flattened (N, K) choices each row comes from."""
    tokens: Tensor
    """(R,): the token of each row."""

    @classmethod
    def of(cls, ids_NK: Tensor, num_experts: int, device: torch.device | None = None) -> TokenGroups:
        """From (N, K) int64 on the host, for rows on `device`; ids at or above num_experts have no row."""
        flat = ids_NK.flatten()
        order = torch.argsort(flat, stable=True)
        ids, counts = torch.unique_consecutive(flat[order], return_counts=True)
        used = int((ids < num_experts).sum())
        num_rows = int(counts[:used].sum())
        places_R = order[:num_rows].to(device or flat.device)
        return cls(ids[:used].tolist(), counts[:used].tolist(), places_R, places_R // ids_NK.shape[1])

    def split(self, rows: Tensor) -> dict[int, Tensor]:
        """The rows (R, ...) of each expert, as views (T, ...)."""
        return dict(zip(self.experts, torch.split(rows, self.counts), strict=True))

    def add_up(self, y_RD: Tensor, weights_NK: Tensor) -> Tensor:
        """Sum over each token's rows of weight * row -> (N, D) in the rows' type.

        Each product is rounded to that type, and they are added in ascending order of the experts.
        """
        (num_tokens, top_k), num_rows = weights_NK.shape, len(y_RD)
        weighted = y_RD.new_zeros(num_rows + 1, y_RD.shape[1])  # one row of zeros for choices without a row
        weighted[:num_rows] = y_RD * weights_NK.flatten()[self.places, None]
        row_of = self.places.new_full((num_tokens * top_k,), num_rows)
        row_of[self.places] = torch.arange(num_rows, device=row_of.device)
        rows_NK = row_of.view(num_tokens, top_k).sort(dim=1).values  # rows are sorted by expert
        out_ND = y_RD.new_zeros(num_tokens, y_RD.shape[1])
        for rows_N in rows_NK.unbind(1):
            out_ND += weighted[rows_N]
        return out_ND
