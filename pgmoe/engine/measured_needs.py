"""A checkpoint's needs, by a dry run of its model."""

from __future__ import annotations

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


def measure_needs(plan: ModelPlan, config: EngineConfig, device: torch.device, prefill_chunk: int) -> Needs:
    """What requests of this configuration take, with prompts cut into chunks of so many tokens.

    Raises ConfigError for a `max_model_len` over the context.
    """
    dry_run = DryRun(plan, prefill_chunk, config.max_running, paged=not config.batch_invariant)
    kept = 0
    if device.type == "cpu":
        kept = RUNTIME_BYTES + KERNEL_CACHE_ENTRIES * KERNEL_BYTES[plan.layers[0].dtype.itemsize]
        kept += config.num_readers * max(map(_scratch_bytes, plan.layers))
        num_tokens = prefill_chunk + config.max_running
        kept += Ledger.num_bytes(num_tokens, [layer.top_k for layer in plan.layers])
        if config.admission == "experts":
            experts_per_layer = [layer.num_experts for layer in plan.layers]
            kept += Footprints.num_bytes(experts_per_layer, 2 * config.max_running)
    sampling = (
        SAMPLING_COPIES * 4 * max(dry_run.vocab_size, CPU_LOGITS if device.type == "cpu" else DEVICE_LOGITS)
    )
    sampling += (
        (2 * config.max_running + PROMPT_LOGPROBS_CHUNK) * dry_run.vocab_size * plan.layers[0].dtype.itemsize
    )

    def workspace(num_tokens: int) -> int:
        return max(dry_run.workspace_bytes(num_tokens), sampling) + kept

    return Needs(
        kv=dry_run.kv_size(),
        workspace=workspace,
        max_running=config.max_running,
        prefill_chunk=prefill_chunk,
        shapes=dry_run.shapes,
        max_model_len=check_context(config.max_model_len, context_of(plan.config)),
    )


def plan_for(config: EngineConfig, plan: ModelPlan, device: torch.device, shape: ExpertShape) -> MemoryPlan:
    """What this configuration divides the device's memory into. Raises BudgetTooSmall or ConfigError."""
    return plan_device(
        config.device_memory,
        config.kv_memory,
        config.prefill_chunk,
        shape,
        lambda chunk: measure_needs(plan, config, device, chunk),
    )
