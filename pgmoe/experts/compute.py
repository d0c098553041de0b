"""The routed experts of one MoE layer, computed from whatever slots they are in.

Shape letters: N tokens, K experts per token, T tokens of one expert, D model width, I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pgmoe.experts.pool import ExpertPool, Weights
from pgmoe.layout import ExpertFFN, ExpertLayer


class PooledExperts:
    """Computes one layer's experts in the order in which they are ready, and adds them up in ascending order.

    So the result does not depend, to the bit, on which experts were resident.
    """

    def __init__(self, index: int, layer: ExpertLayer, pool: ExpertPool) -> None:
        self._index = index
        self._layer = layer
        self._pool = pool

    def __call__(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden (N, D), top_k_index (N, K) int64, top_k_weights (N, K) -> (N, D) in hidden's dtype.

        Entries of top_k_index at or above the number of experts are skipped. Raises ExpertReadError.
        """
        if len(hidden) == 1:
            return self._one_token(hidden, top_k_index[0], top_k_weights[0])
        rows, places = group_by_expert(top_k_index, self._layer.num_experts)
        outputs: dict[int, Tensor] = {}
        with self._pool.lease(self._index, list(rows)) as experts:
            for expert in experts:
                y_TD = apply_ffn(self._layer.ffn, expert.weights, hidden[rows[expert.index]])
                weights_T = top_k_weights.flatten()[places[expert.index]]
                outputs[expert.index] = (y_TD * weights_T[:, None]).to(hidden.dtype)
        out_ND = torch.zeros_like(hidden)
        for index, rows_T in rows.items():
            out_ND.index_add_(0, rows_T, outputs[index])
        return out_ND

    def _one_token(self, hidden: Tensor, ids_K: Tensor, weights_K: Tensor) -> Tensor:
        """The same for a single token, with few operations: decoding does this in every layer."""
        out_1D = torch.zeros_like(hidden)
        chosen = sorted((e, k) for k, e in enumerate(ids_K.tolist()) if e < self._layer.num_experts)
        if not chosen:
            return out_1D
        outputs: dict[int, Tensor] = {}
        with self._pool.lease(self._index, [e for e, _ in chosen]) as experts:
            for expert in experts:
                outputs[expert.index] = apply_ffn(self._layer.ffn, expert.weights, hidden)
        assert len(outputs) == len(chosen), (outputs.keys(), chosen)
        y_KD = torch.cat([outputs[e] for e, _ in chosen])
        order = torch.tensor([k for _, k in chosen], device=weights_K.device)
        for y_D in (y_KD * weights_K[order, None]).to(hidden.dtype).unbind():
            out_1D += y_D
        return out_1D


def group_by_expert(top_k_index: Tensor, num_experts: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """For each expert of (N, K), ascending: the tokens that chose it (T,), and their places in (N * K).

    Waits for the device once.
    """
    flat = top_k_index.flatten().cpu()
    order = torch.argsort(flat, stable=True)
    ids, counts = torch.unique_consecutive(flat[order], return_counts=True)
    on_device = torch.split(order.to(top_k_index.device), counts.tolist())
    places = dict(zip(ids.tolist(), on_device, strict=True))
    places = {e: p for e, p in places.items() if e < num_experts}
    return {e: p // top_k_index.shape[1] for e, p in places.items()}, places


def apply_ffn(ffn: ExpertFFN, weights: Weights, x_TD: Tensor) -> Tensor:
    """One expert on its tokens: (T, D) -> (T, D). See ExpertFFN for the formula."""
    h_TI = ffn.activation(_project(x_TD, weights["up"], weights.get("up_bias"), ffn.transposed))
    y_TD = _project(h_TI, weights["down"], weights.get("down_bias"), ffn.transposed)
    if ffn.post_norm is not None:
        y_TD = ffn.post_norm(y_TD)
    return y_TD if ffn.output_scale == 1.0 else y_TD * ffn.output_scale


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """x (T, a) times weight (b, a), or (a, b) where transposed, plus bias (b).

    A single row is a matrix-vector product: reading the weight is all it costs, and `mv` reads fastest.
    """
    if x.shape[0] == 1 and not transposed and x.device.type == "cpu":
        y = torch.mv(weight, x[0])[None]
    else:
        y = x @ weight if transposed else functional.linear(x, weight)
    return y if bias is None else y + bias
