"""SmallThinker in plain PyTorch, from its published formulas and tensor names, and no more.

Shape letters: S sequence, D model width, E experts, K per token, H heads, A width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


def plain_route(x_SD: Tensor, router_ED: Tensor, top_k: int, *, softmax: bool) -> tuple[Tensor, Tensor]:
    """Experts and weights, both (S, K)."""
    largest_SK, id_SK = functional.linear(x_SD, router_ED).topk(top_k, dim=-1)
    if softmax:
        return id_SK, functional.softmax(largest_SK, dim=-1)
    sigmoid_SK = torch.sigmoid(largest_SK)
    return id_SK, sigmoid_SK / sigmoid_SK.sum(dim=-1, keepdim=True)


def plain_moe(router_input_SD: Tensor, x_SD: Tensor, block: Weights, config: Mapping[str, Any]) -> Tensor:
    """(S, D): experts chosen by the one input, computed of the other, added in ascending order."""
    id_SK, weight_SK = plain_route(
        router_input_SD,
        block["primary_router.weight"],
        config["moe_num_active_primary_experts"],
        softmax=config["moe_primary_router_apply_softmax"],
    )
    out_SD = torch.zeros_like(x_SD)
    for expert in range(config["moe_num_primary_experts"]):
        gate, up, down = (block[f"experts.{expert}.{name}.weight"] for name in ("gate", "up", "down"))
        token, place = torch.where(id_SK == expert)
        x_TD = x_SD[token]
        h_TI = functional.linear(x_TD, up) * functional.relu(functional.linear(x_TD, gate))
        out_SD.index_add_(0, token, functional.linear(h_TI, down) * weight_SK[token, place, None])
    return out_SD


def plain_logits(ids: list[int], weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """(S, V) of every position."""
    x_SD = weights["model.embed_tokens.weight"][torch.tensor(ids)]
    for index in range(config["num_hidden_layers"]):
        layer = _below(weights, f"model.layers.{index}.")
        normed = _norm(x_SD, layer["input_layernorm.weight"], config)
        added_SD = x_SD + _attention(normed, _below(layer, "self_attn."), index, config)
        normed = _norm(added_SD, layer["post_attention_layernorm.weight"], config)
        x_SD = added_SD + plain_moe(x_SD, normed, _below(layer, "block_sparse_moe."), config)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return functional.linear(_norm(x_SD, weights["model.norm.weight"], config), weights[head])


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}


def _norm(x_SD: Tensor, weight_D: Tensor, config: Mapping[str, Any]) -> Tensor:
    return weight_D * x_SD * (x_SD.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt()


def _attention(x_SD: Tensor, layer: Weights, index: int, config: Mapping[str, Any]) -> Tensor:
    width, length = config["head_dim"], len(x_SD)
    q, k, v = (
        functional.linear(x_SD, layer[f"{name}_proj.weight"]).view(length, -1, width) for name in "qkv"
    )
    if config["rope_layout"][index]:
        q, k = _rotated(q, config["rope_theta"]), _rotated(k, config["rope_theta"])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    score_HSS = torch.einsum("qha,kha->hqk", q, k) / width**0.5
    back_SS = torch.arange(length)[:, None] - torch.arange(length)
    hidden_SS = back_SS < 0
    if config["sliding_window_layout"][index]:
        hidden_SS |= back_SS >= config["sliding_window_size"]
    share_HSS = score_HSS.masked_fill(hidden_SS, float("-inf")).softmax(-1)
    out_SHA = torch.einsum("hqk,kha->qha", share_HSS, v)
    return functional.linear(out_SHA.reshape(length, -1), layer["o_proj.weight"])


def _rotated(x_SHA: Tensor, theta: float) -> Tensor:
    length, _, width = x_SHA.shape
    frequency = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    angle_S1A = (torch.arange(length)[:, None] * frequency).repeat(1, 2)[:, None]
    first, second = x_SHA.chunk(2, dim=-1)
    return x_SHA * angle_S1A.cos() + torch.cat((-second, first), dim=-1) * angle_S1A.sin()
