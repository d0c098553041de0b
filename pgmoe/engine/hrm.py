"""MoE-Lightning's policy for offline batches: which batch, and which share of the weights on the GPU.

The closed form that its artifact solves for the decode phase (Cao et al., arXiv 2411.11217): weights stream
to the GPU layer by layer, attention runs on the CPU. Bytes are those of 16-bit values. A prediction for that
system: this engine fetches single experts and computes attention where the dense weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GPU_SHARE, CPU_SHARE = 0.86, 0.8
"""Of either memory, what the policy may fill."""
FIRST_MICRO_BATCHES = (1, 2, 3)
MICRO_BATCH_STEP = 32
"""Micro-batches tried: 1, 2, 3, then 4, 36, 68, ..."""


@dataclass(frozen=True)
class HrmModel:
    """A model and its task. Names in brackets are the paper's."""

    num_layers: int
    """(l)"""
    width: int
    """(h1)"""
    expert_width: int
    """(h2)"""
    num_heads: int
    """(nh)"""
    num_kv_heads: int
    """(nkv)"""
    num_experts: int
    """Of a layer (ne)."""
    top_k: int
    """(k)"""
    prompt_tokens: int
    """(s)"""
    answer_tokens: int
    """(n), 2 or more."""


@dataclass(frozen=True)
class HrmMachine:
    """A GPU, a CPU and the link between them: bytes, bytes/s, operations/s."""

    gpu_memory: float
    cpu_memory: float
    link_bandwidth: float
    gpu_bandwidth: float
    cpu_bandwidth: float
    gpu_flops: float
    cpu_flops: float


@dataclass(frozen=True)
class HrmPolicy:
    """What to run, and what comes of it."""

    micro_batch: int
    """Sequences that pass through a layer together (mu)."""
    num_micro_batches: int
    """(N / mu)"""
    weights_on_gpu: float
    """Share of the expert weights that stays on the GPU (wg)."""
    layer_s: float
    """Seconds that one layer takes for one token of all sequences (T)."""
    tokens_per_s: float


def best_policy(model: HrmModel, machine: HrmMachine) -> HrmPolicy | None:
    """The policy with the most tokens per second; None if not even one sequence fits.

    For each micro-batch the number of them grows until throughput falls, and micro-batches grow until none
    fits.
    """
    best: HrmPolicy | None = None
    for micro_batch in _micro_batches():
        found = _best_number(model, machine, micro_batch)
        if found is None:
            return best
        if best is None or found.tokens_per_s > best.tokens_per_s:
            best = found
    raise AssertionError("unreachable: memory is finite")


def _micro_batches() -> Iterator[int]:
    yield from FIRST_MICRO_BATCHES
    size = FIRST_MICRO_BATCHES[-1] + 1
    while True:
        yield size
        size += MICRO_BATCH_STEP


def _best_number(model: HrmModel, machine: HrmMachine, micro_batch: int) -> HrmPolicy | None:
    best: HrmPolicy | None = None
    number = 1
    while (found := _policy(model, machine, micro_batch, number)) is not None:
        if best is not None and found.tokens_per_s < best.tokens_per_s:
            break
        best, number = found, number + 1
    return best


def _policy(model: HrmModel, machine: HrmMachine, micro_batch: int, number: int) -> HrmPolicy | None:
    """With as much of the weights on the GPU as fits; None where memory is too small."""
    share = _weights_on_gpu(model, machine, micro_batch, number)
    if share is None:
        return None
    seconds = max(
        _expert_bytes(model) * (1 - share) / machine.link_bandwidth,
        number * _gpu_seconds(model, machine, micro_batch),
        number * _cpu_seconds(model, machine, micro_batch),
    )
    tokens = micro_batch * number * model.answer_tokens
    rate = tokens / (seconds * (model.answer_tokens - 1) * model.num_layers)
    return HrmPolicy(micro_batch, number, share, seconds, rate)


def _expert_bytes(model: HrmModel) -> int:
    """Of one layer (wi)."""
    return 6 * model.width * model.expert_width * model.num_experts


def _gpu_seconds(model: HrmModel, machine: HrmMachine, mu: int) -> float:
    """The experts of one layer for one micro-batch (T_gpu)."""
    operations = 6 * mu * model.width * model.expert_width * model.top_k
    num_bytes = 2 * mu * (model.width + model.expert_width) + _expert_bytes(model)
    return max(operations / machine.gpu_flops, num_bytes / machine.gpu_bandwidth)


def _cpu_seconds(model: HrmModel, machine: HrmMachine, mu: int) -> float:
    """The attention of one layer for one micro-batch (T_cpu)."""
    head = model.width / model.num_heads
    length = model.prompt_tokens + model.answer_tokens
    operations = 2 * mu * length * model.num_heads * (head + 1)
    num_bytes = 4 * mu * model.num_heads * head + 4 * mu * length * model.num_kv_heads * head
    return max(operations / machine.cpu_flops, num_bytes / machine.cpu_bandwidth)


def _weights_on_gpu(model: HrmModel, machine: HrmMachine, mu: int, number: int) -> float | None:
    """The largest share that the GPU holds, if the CPU holds the rest (wg).

    Both sides are linear in it: on the GPU 1 - share of two layers is the buffer that weights stream through.
    """
    weights, layers = _expert_bytes(model), model.num_layers
    s, h1, n = model.prompt_tokens, model.width, mu * number
    h_kv = h1 / (model.num_heads / model.num_kv_heads)
    attention = (4 * h1**2 + 4 * h1 * h_kv) * layers
    hidden = max(4 * h1 * n, 4 * h1 * mu * s + 2 * h1 * n * s + 8 * s * h_kv * mu)
    expert_rows = 2.4 * (mu * model.top_k * h1 * s + 3 * mu * model.top_k * model.expert_width * s)
    gpu_room = GPU_SHARE * machine.gpu_memory - attention - hidden - expert_rows - 2 * weights
    share = min(1.0, gpu_room / (weights * (layers - 2)))
    kv = 4 * (s + model.answer_tokens) * h_kv * n * layers
    cpu_bytes = weights * (layers + 2) * (1 - share) + kv + 2 * h1 * n * s
    return share if share >= 0 and cpu_bytes <= CPU_SHARE * machine.cpu_memory else None
