"""Routers by the kernel: which take it, and what they choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from pgmoe.cpu.kernels import MOST_EXPERTS, SLAB, available
from pgmoe.models import linear
from pgmoe.models.kernel_router import _KernelRouter, use_kernel
from pgmoe.models.pre_gate import PreGatedRouter, gate_map, pre_gate, pre_gated_stacks
from pgmoe.pre_gating import PreGating
from tests.support.checkpoints import tiny_model, wide_config
from tests.support.fresh import fresh_seed

pytestmark = pytest.mark.skipif(not available(), reason="no CPU with AMX, or built without a compiler")
WIDTH = 64


class Biased(MixtralTopKRouter):
    """Of a family whose block says more than the tokens."""

    def forward(self, hidden_states: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return super().forward(hidden_states if bias is None else hidden_states + bias)


TAKEN: dict[str, Any] = {
    "mixtral": lambda: MixtralTopKRouter(MixtralConfig(hidden_size=WIDTH, num_local_experts=8)),
    "normalised": lambda: Qwen3MoeTopKRouter(
        Qwen3MoeConfig(hidden_size=WIDTH, num_experts=40, num_experts_per_tok=6, norm_topk_prob=True)
    ),
    "not normalised": lambda: OlmoeTopKRouter(
        OlmoeConfig(hidden_size=WIDTH, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False)
    ),
    "softmax of the chosen": lambda: GraniteMoeTopKRouter(
        GraniteMoeConfig(hidden_size=WIDTH, num_local_experts=5, num_experts_per_tok=3)
    ),
    "bias": lambda: GptOssTopKRouter(GptOssConfig(hidden_size=WIDTH, num_local_experts=32)),
    "all": lambda: MixtralTopKRouter(
        MixtralConfig(hidden_size=WIDTH, num_local_experts=4, num_experts_per_tok=4)
    ),
}
OTHERS: dict[str, Any] = {
    "sparsemixer": lambda: PhimoeTopKRouter(PhimoeConfig(hidden_size=WIDTH, num_local_experts=8)),
    "sigmoid": lambda: DeepseekV3TopkRouter(DeepseekV3Config(hidden_size=WIDTH, n_routed_experts=16)),
    "float32": lambda: Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(hidden_size=WIDTH, moe_num_experts=16)),
    "another argument": lambda: Biased(MixtralConfig(hidden_size=WIDTH, num_local_experts=8)),
    "too many experts": lambda: MixtralTopKRouter(
        MixtralConfig(hidden_size=WIDTH, num_local_experts=MOST_EXPERTS + 1)
    ),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(fresh_seed())


def router_of(make: Any) -> Any:
    router = make().eval()
    for parameter in router.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    router.bfloat16()
    linear.use_kernel_of(router)
    return router


def taken(make: Any) -> Any:
    router = router_of(make)
    use_kernel(router)
    assert isinstance(router, _KernelRouter)
    return router


@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [1, 7, 64, SLAB + 5])
@pytest.mark.parametrize("kind", TAKEN)
def test_chooses_as_the_familys_router(kind: str, num_tokens: int) -> None:
    router = router_of(TAKEN[kind])
    x_TD = torch.randn(num_tokens, WIDTH).bfloat16()
    logits_TE, weights_TK, ids_TK = router(x_TD)
    use_kernel(router)
    assert isinstance(router, _KernelRouter)
    ours_TE, ours_TK, chosen_TK = router(x_TD)
    assert torch.equal(ours_TE.float(), logits_TE.float())
    assert torch.equal(ours_TE.gather(1, chosen_TK), ours_TE.gather(1, ids_TK)), "others only where as likely"
    assert ours_TK.dtype == weights_TK.dtype
    step = torch.finfo(weights_TK.dtype).eps
    torch.testing.assert_close(ours_TK, weights_TK, rtol=max(1e-5, 2 * step), atol=1e-30)


@torch.inference_mode()
def test_weights_are_the_softmax() -> None:
    router = taken(TAKEN["mixtral"])
    logits_TE, weights_TK, ids_TK = router(torch.randn(50, WIDTH).bfloat16())
    exact_TK = logits_TE.double().softmax(-1).gather(1, ids_TK)
    torch.testing.assert_close(
        weights_TK.double(), exact_TK / exact_TK.sum(-1, keepdim=True), rtol=1e-6, atol=1e-30
    )


@torch.inference_mode()
def test_of_equally_likely_experts_the_first_are_chosen() -> None:
    router = taken(TAKEN["not normalised"])
    _, weights_TK, ids_TK = router(torch.zeros(3, WIDTH).bfloat16())
    assert ids_TK.tolist() == [[*range(8)]] * 3
    torch.testing.assert_close(weights_TK.float(), torch.full((3, 8), 1 / 64))


@torch.inference_mode()
def test_a_token_gets_the_same_bits_whatever_runs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    router = taken(TAKEN["normalised"])
    x_TD = torch.randn(SLAB + 20, WIDTH).bfloat16()
    together = router(x_TD)
    for num_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=num_threads: n)
        for first in (0, 9, SLAB - 1, SLAB, SLAB + 19):
            alone = router(x_TD[first : first + 1])
            assert all(torch.equal(one[0], all_[first]) for one, all_ in zip(alone, together, strict=True))


@torch.inference_mode()
def test_what_is_not_a_number_shows_and_chooses_distinct_experts() -> None:
    router = taken(TAKEN["normalised"])
    x_TD = torch.randn(3, WIDTH).bfloat16()
    x_TD[1, 5] = torch.nan
    x_TD[2, 7] = torch.inf
    _, weights_TK, ids_TK = router(x_TD)
    assert weights_TK[0].isfinite().all()
    assert weights_TK[1:].isnan().any(1).all()
    assert all(len(set(ids)) == 6 and max(ids) < 40 for ids in ids_TK.tolist())


@torch.inference_mode()
def test_many_small_numbers_are_summed_alike() -> None:
    """Logits far apart, of which the softmax is nothing in float32."""
    router = taken(TAKEN["mixtral"])
    x_TD = (torch.randn(30, WIDTH) * 1000).bfloat16()
    logits_TE, weights_TK, ids_TK = router(x_TD)
    top_TK = logits_TE.float().topk(2).values
    assert torch.equal(logits_TE.float().gather(1, ids_TK), top_TK)
    torch.testing.assert_close(weights_TK.double(), top_TK.double().softmax(-1), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_router_that_chooses_otherwise_stays(kind: str) -> None:
    router = router_of(OTHERS[kind])
    kept = type(router)
    use_kernel(router)
    assert type(router) is kept


@torch.inference_mode()
def test_pre_gated_routers_select_as_before_for_the_block_after() -> None:
    model = tiny_model(wide_config(), torch.bfloat16)
    wanted = PreGating(level=1, scope="decoder")
    gates = gate_map(pre_gated_stacks(model, wanted), 1)
    model.config.pgmoe = replace(wanted, gates={b.router_name: r.name for b, r in gates.items()}).to_dict()
    (chain,) = pre_gate(model).chains  # type: ignore[union-attr]
    routers = [router for router in model.modules() if isinstance(router, PreGatedRouter)]
    inputs = [torch.randn(5, model.config.hidden_size).bfloat16() for _ in routers]
    for router in routers:
        linear.use_kernel_of(router)
    expected = [router(x) for router, x in zip(routers, inputs, strict=True)]
    for router in routers:
        use_kernel(router)
    assert len(routers) > 1
    assert all(isinstance(router, _KernelRouter) and router.chain is chain for router in routers)
    assert all(isinstance(router, MixtralTopKRouter) for router in routers)
    given = [router(x) for router, x in zip(routers, inputs, strict=True)]
    for (ours_TE, ours_TK, chosen_TK), (logits_TE, weights_TK, ids_TK) in zip(given, expected, strict=True):
        assert torch.equal(ours_TE, logits_TE)
        assert torch.equal(ours_TE.gather(1, chosen_TK), ours_TE.gather(1, ids_TK))
        torch.testing.assert_close(ours_TK, weights_TK, rtol=1e-5, atol=1e-30)
    assert not torch.equal(given[1][0], routers[1].ask(inputs[1])[0]), "of the block before"


def test_gradients_come_from_torch() -> None:
    router = taken(TAKEN["mixtral"])
    _, weights_TK, _ = router(torch.randn(2, WIDTH).bfloat16())
    weights_TK[:, 0].sum().backward()
    assert router.weight.grad is not None
