from __future__ import annotations

from dataclasses import replace

import pytest

from pgmoe.engine.hrm import HrmMachine, HrmModel, best_policy

MIXTRAL = HrmModel(
    num_layers=32,
    width=4096,
    expert_width=14336,
    num_heads=32,
    num_kv_heads=8,
    num_experts=8,
    top_k=2,
    prompt_tokens=77,
    answer_tokens=32,
)
L4 = HrmMachine(
    gpu_memory=25769803776,
    cpu_memory=197880360960,
    link_bandwidth=17179869184,
    gpu_bandwidth=306016419840,
    cpu_bandwidth=81604378624,
    gpu_flops=104e12,
    cpu_flops=1.6e12,
)


def test_the_policy_is_the_one_that_the_artifact_publishes_for_mixtral_on_an_l4() -> None:
    policy = best_policy(MIXTRAL, L4)
    assert policy is not None
    assert (policy.micro_batch, policy.num_micro_batches) == (324, 14)
    assert policy.weights_on_gpu == pytest.approx(0.055885, abs=5e-7)
    assert policy.layer_s * MIXTRAL.num_layers == pytest.approx(4.957, abs=5e-4)
    assert policy.tokens_per_s == pytest.approx(944.66, abs=5e-3)


@pytest.mark.parametrize(
    ("answer_tokens", "micro_batch", "number"),
    # At 256 the artifact publishes 132/12, which the same formula finds slower; it warns of variance.
    [(64, 228, 16), (128, 164, 16), (256, 164, 10)],
)
def test_longer_answers_want_smaller_batches(answer_tokens: int, micro_batch: int, number: int) -> None:
    policy = best_policy(replace(MIXTRAL, answer_tokens=answer_tokens), L4)
    assert policy is not None
    assert (policy.micro_batch, policy.num_micro_batches) == (micro_batch, number)


def test_at_256_tokens_it_is_faster_than_the_published_choice() -> None:
    policy = best_policy(replace(MIXTRAL, answer_tokens=256), L4)
    assert policy is not None
    assert policy.tokens_per_s == pytest.approx(353.96, abs=5e-3)
    assert policy.tokens_per_s > 344.88


def test_there_is_none_where_one_sequence_does_not_fit() -> None:
    assert best_policy(MIXTRAL, replace(L4, gpu_memory=2**30)) is None
    assert best_policy(MIXTRAL, replace(L4, cpu_memory=2**30)) is None
