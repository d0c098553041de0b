"""The routed experts of one MoE layer, computed from whatever slots they are in.

Shape letters: N tokens, K experts per token, T tokens of one expert, D model width, I expert width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.experts.footprints import Footprints
from pgmoe.experts.grouping import TokenGroups
from pgmoe.experts.ledger import Ledger
from pgmoe.experts.pool import ExpertPool, LentExpert, Weights
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.layout import ExpertFFN, ExpertLayer
from pgmoe.routing import Routing

ROWS = 16
"""On a CPU, oneDNN compiles a product of 16-bit numbers anew for every number of rows, which takes nearly as
long as multiplying 100 of them by an expert."""


class PooledExperts:
    """Computes one layer's experts in the order in which they are ready, and adds them up in ascending order.

    So the result does not depend, to the bit, on which experts were resident.
    """

    def __init__(
        self,
        index: int,
        layer: ExpertLayer,
        pool: ExpertPool,
        prefetcher: Prefetcher,
        ledger: Ledger,
        footprints: Footprints | None = None,
    ) -> None:
        self._index = index
        self._layer = layer
        self._pool = pool
        self._prefetcher = prefetcher
        self._ledger = ledger
        self._footprints = footprints
        self._announced: tuple[Tensor, Tensor] | None = None
        """What was announced last and has not been computed yet: as it came, and on the host."""

    def announce(self, top_k_index: Tensor) -> None:
        """This layer has chosen (N, K) int64 and is called with these very ids after its attention.

        Where the gating takes exact selections they are ordered now: the host waits for the device here and
        not once more at the layer's turn. Where it takes none, nothing is done.
        """
        if not self._prefetcher.wants_selections:
            return
        ids_NK = top_k_index.cpu()
        self._announced = top_k_index, ids_NK
        num_experts = self._layer.num_experts
        used = Counter(e for e in ids_NK.flatten().tolist() if e < num_experts)
        self._prefetcher.select(self._index, used)

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden (N, D), top_k_index (N, K) int64, top_k_weights (N, K) -> (N, D) in hidden's dtype.

        A token's entries of top_k_index are distinct; those at or above the number of experts are skipped.
        Not differentiable. Raises ExpertReadError.
        """
        ids_NK, ahead_NK = self._on_host(hidden, top_k_index)
        routing = Routing(self._index, ids_NK.tolist(), top_k_weights, ahead_NK.tolist())
        if len(hidden) == 1:
            out = self._one_token(hidden, top_k_index[0].argsort(), routing)
        else:
            out = self._several(hidden, ids_NK, top_k_weights, routing)
        self._ledger.enter(ids_NK, self._layer.num_experts, self._pool.missed)
        if self._footprints is not None:
            self._footprints.enter(self._index, ids_NK)
        return out

    def _several(self, hidden: Tensor, ids_NK: Tensor, weights_NK: Tensor, routing: Routing) -> Tensor:
        groups = TokenGroups.of(ids_NK, self._layer.num_experts, hidden.device)
        x_RD = hidden[groups.tokens]
        y_RD = torch.empty_like(x_RD)
        x_of, y_of = groups.split(x_RD), groups.split(y_RD)
        with self._lease(routing, groups.experts) as lent:
            for (expert,) in lent:
                y_of[expert.index].copy_(apply_ffn(self._layer.ffn, expert.weights, x_of[expert.index]))
        return groups.add_up(y_RD, weights_NK)

    def _on_host(self, hidden: Tensor, top_k_index: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's ids, and those that the gating looks ahead to; (0, 0) where there are none.

        The host waits for the device once a layer: here, or when the ids were announced.
        """
        ahead = self._prefetcher.look_ahead(self._index, hidden)
        announced, self._announced = self._announced, None
        if announced is not None and announced[0] is top_k_index and ahead is None:
            return announced[1], torch.empty(0, 0, dtype=torch.int64)
        return _to_host(top_k_index, ahead)

    def _one_token(self, hidden: Tensor, order_K: Tensor, routing: Routing) -> Tensor:
        """The same for a single token, with few operations: decoding does this in every layer.

        order_K sorts its ids; it is made on the device, or adding up would have to wait for the host.
        """
        (ids_K,), (weights_K,) = routing.ids, routing.weights
        chosen = sorted(e for e in ids_K if e < self._layer.num_experts)
        row_of = {e: row for row, e in enumerate(chosen)}
        assert len(row_of) == len(chosen), chosen
        token = LoneToken(self._layer, hidden[0], len(chosen))
        with self._lease(routing, list(row_of), at_once=len(chosen)) as lent:
            for batch in lent:
                token.apply({row_of[expert.index]: expert.weights for expert in batch})
        return token.weighted_sum(weights_K[order_K[: len(chosen)]])[None]

    @contextmanager
    def _lease(
        self, routing: Routing, experts: list[int], at_once: int = 1
    ) -> Iterator[Iterator[list[LentExpert]]]:
        """Lend these experts; once the missing ones are ordered, what comes next may be."""
        with self._pool.lease(self._index, experts, at_once) as lent:
            self._prefetcher.follow(routing, experts)
            yield lent


def _to_host(ids_NK: Tensor, ahead_NK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both on the host, which waits for the device once. Nothing ahead is (0, 0)."""
    if ahead_NK is None:
        return ids_NK.cpu(), torch.empty(0, 0, dtype=torch.int64)
    both = torch.cat([ids_NK, ahead_NK], dim=1).cpu()
    return both[:, : ids_NK.shape[1]], both[:, ids_NK.shape[1] :]


class LoneToken:
    """One token on its way through K experts, which may come a few at a time and in any order.

    Activation and norm run over all K rows whenever some are new. A vectorised loop may round the last few
    elements of its range differently (float32 `silu` does, over rows without gaps), so a row must lie in the
    same range however the experts came.
    """

    def __init__(self, layer: ExpertLayer, x_D: Tensor, num_experts: int) -> None:
        self._ffn = layer.ffn
        self._x_D = x_D
        self._up_KU = x_D.new_zeros(num_experts, layer.up_width)
        self._y_KD = x_D.new_zeros(num_experts, len(x_D))

    def apply(self, experts: Mapping[int, Weights]) -> None:
        """Compute these experts; each has a row of its own, 0 to K - 1."""
        up_rows, y_rows = self._up_KU.unbind(), self._y_KD.unbind()
        for k, weights in experts.items():
            self._project(self._x_D, weights, "up", up_rows[k])
        h_rows = self._ffn.activation(self._up_KU).unbind()
        for k, weights in experts.items():
            self._project(h_rows[k], weights, "down", y_rows[k])

    def weighted_sum(self, weights_K: Tensor) -> Tensor:
        """Outputs times weights, each rounded to the token's type, added row after row -> (D,)."""
        y_KD = self._ffn.finish(self._y_KD) * weights_K[:, None]
        out_D = torch.zeros_like(self._x_D)
        for y_D in y_KD.to(out_D.dtype).unbind():
            out_D += y_D
        return out_D

    def _project(self, x_a: Tensor, weights: Weights, name: str, out_b: Tensor) -> None:
        _project_one(x_a, weights[name], self._ffn.transposed, out_b)
        if (bias := weights.get(name + "_bias")) is not None:
            out_b += bias


def apply_ffn(ffn: ExpertFFN, weights: Weights, x_TD: Tensor) -> Tensor:
    """One expert on its tokens: (T, D) -> (T, D). See ExpertFFN for the formula."""
    num_tokens = len(x_TD)
    x_TD = _round_up(x_TD)
    h_TI = ffn.activation(_project(x_TD, weights["up"], weights.get("up_bias"), ffn.transposed))
    y_TD = ffn.finish(_project(h_TI, weights["down"], weights.get("down_bias"), ffn.transposed))
    return y_TD[:num_tokens]


def _round_up(x_TD: Tensor) -> Tensor:
    """With rows of zeros to a multiple of ROWS, where a prompt gives every expert another number of them."""
    num_tokens, is_half = len(x_TD), x_TD.dtype.itemsize == 2
    if num_tokens <= ROWS or not is_half or x_TD.device.type != "cpu":
        return x_TD
    return functional.pad(x_TD, (0, 0, 0, -num_tokens % ROWS))


def _project(x_Ta: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """x times weight (b, a), or (a, b) where transposed, plus bias (b,).

    On a CPU the weight stands on the left: the operand on the right is rearranged for each product, and that
    takes longer than multiplying it by a few tokens. With 8 of them it was 1.3 to 1.8 times as fast, with 128
    up to twice, in bfloat16 with AMX (by hand, one core). Other types keep the order in which they sum.
    """
    if len(x_Ta) == 1:
        y_Tb = x_Ta.new_empty(1, weight.shape[1 if transposed else 0])
        _project_one(x_Ta[0], weight, transposed, y_Tb[0])
    elif transposed or x_Ta.device.type != "cpu" or x_Ta.dtype != torch.bfloat16:
        y_Tb = x_Ta @ weight if transposed else functional.linear(x_Ta, weight)
    else:
        y_Tb = (weight @ x_Ta.t()).t()
    return y_Tb if bias is None else y_Tb + bias


def _project_one(x_a: Tensor, weight: Tensor, transposed: bool, out_b: Tensor) -> None:
    """The same for one row: reading the weight is all it costs, and on a CPU `mv` reads fastest."""
    if transposed or x_a.device.type != "cpu":
        torch.mm(x_a[None], weight if transposed else weight.t(), out=out_b[None])
    else:
        torch.mv(weight, x_a, out=out_b)
