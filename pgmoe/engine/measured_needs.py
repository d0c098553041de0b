"""A checkpoint's needs, by a dry run of its model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.device_plan import plan_device
from pgmoe.engine.dry_run import DryRun
from pgmoe.engine.memory_plan import ExpertShape, MemoryPlan
from pgmoe.engine.model_facts import check_context, context_of
from pgmoe.engine.needs import Needs
from pgmoe.engine.row_slices import CPU_LOGITS, DEVICE_LOGITS
from pgmoe.experts.footprints import Footprints
from pgmoe.experts.ledger import Ledger
from pgmoe.experts.stores.read_plan import plan_reads
from pgmoe.layout import ExpertLayer
from pgmoe.models.loader import ModelPlan
from pgmoe.openmp import KERNEL_CACHE_ENTRIES

SAMPLING_COPIES = 8
"""Of the float32 logits that are looked at together, what the choice of tokens holds at most: sorted, summed
up, filtered."""
PROMPT_LOGPROBS_CHUNK = 64
"""Most prompt tokens in a step of requests that want their log-probabilities, each a row of logits."""
KERNEL_BYTES = {2: 1_100_000, 4: 64_000}
"""By the bytes of an element: what torch's matrix library keeps on a CPU for each shape that it has
multiplied. Measured on a processor with AMX, where it is most."""
RUNTIME_BYTES = 8 * 2**20
"""On a CPU: Python's own objects, pages of the heap that are not full."""


def _scratch_bytes(layer: ExpertLayer) -> int:
    """What a reader holds beside a slot while it reads one of these experts; their files are all alike."""
    extents = layer.extents[0]
    return max(run.scratch_bytes for run in plan_reads(extents, layer.layout.starts(extents)))


def measuring(plan: ModelPlan, config: EngineConfig, device: torch.device) -> Callable[[int], Needs]:
    """What requests of this configuration take, if prompts are cut into chunks of so many tokens.

    By one dry run of the model. Raises ConfigError for a `max_model_len` over the context.
    """
    dry_run = DryRun(plan, config.max_running, on_cpu=device.type == "cpu", paged=not config.batch_invariant)
    dtype_bytes = plan.layers[0].dtype.itemsize
    looked_at = max(dry_run.vocab_size, CPU_LOGITS if device.type == "cpu" else DEVICE_LOGITS)
    sampling = SAMPLING_COPIES * 4 * looked_at
    sampling += (2 * config.max_running + PROMPT_LOGPROBS_CHUNK) * dry_run.vocab_size * dtype_bytes

    kv, longest = dry_run.kv_size(), check_context(config.max_model_len, context_of(plan.config))

    def needs(prefill_chunk: int) -> Needs:
        def workspace(num_tokens: int) -> int:
            step = max(dry_run.workspace_bytes(num_tokens, prefill_chunk), sampling)
            if device.type != "cpu":
                return step
            return step + _kept_bytes(plan, config, prefill_chunk, by_torch=dry_run.by_torch)

        return Needs(
            kv=kv,
            workspace=workspace,
            max_running=config.max_running,
            prefill_chunk=prefill_chunk,
            shapes=dry_run.shapes,
            max_model_len=longest,
        )

    return needs


def _kept_bytes(plan: ModelPlan, config: EngineConfig, prefill_chunk: int, *, by_torch: bool) -> int:
    """Of a CPU's memory, what steps with such chunks leave for the next one, or hold beside tensors.

    Where torch's library does not multiply the model's matrices, it still does a few of float32.
    """
    element_bytes = plan.layers[0].dtype.itemsize if by_torch else torch.float32.itemsize
    kept = RUNTIME_BYTES + KERNEL_CACHE_ENTRIES * KERNEL_BYTES[element_bytes]
    kept += config.num_readers * max(map(_scratch_bytes, plan.layers))
    experts_per_layer = [layer.num_experts for layer in plan.layers]
    most_tokens, top_ks = prefill_chunk + config.max_running, [layer.top_k for layer in plan.layers]
    kept += Ledger.num_bytes(config.max_running, most_tokens, experts_per_layer, top_ks)
    if config.admission == "experts":
        kept += Footprints.num_bytes(experts_per_layer, 2 * config.max_running)
    return kept


def plan_for(config: EngineConfig, plan: ModelPlan, device: torch.device, shape: ExpertShape) -> MemoryPlan:
    """What this configuration divides the device's memory into. Raises BudgetTooSmall or ConfigError."""
    return plan_device(
        config.device_memory,
        config.kv_memory,
        config.prefill_chunk,
        shape,
        measuring(plan, config, device),
    )
