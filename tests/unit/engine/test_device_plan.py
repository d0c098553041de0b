from __future__ import annotations

import pytest

from pgmoe.engine.device_plan import plan_device
from pgmoe.engine.kv_size import KvSize
from pgmoe.engine.memory_plan import ExpertShape
from pgmoe.engine.needs import Needs

MIB = 2**20
SHAPE = ExpertShape(num_experts=256, slot_bytes=MIB, top_k=2, dense_bytes=10 * MIB)


def plan(device_memory: str, chunk_token_bytes: int, *, max_model_len: int = 8192) -> tuple[int, int]:
    """(chunk, slots)."""

    def measure(chunk: int) -> Needs:
        return Needs(
            kv=KvSize(token_bytes=1024),
            workspace=lambda num_tokens: chunk_token_bytes * min(chunk, num_tokens),
            max_running=4,
            max_model_len=max_model_len,
            prefill_chunk=chunk,
        )

    found = plan_device(device_memory, "8MiB", "auto", SHAPE, measure)
    return found.prefill_chunk, found.num_slots


@pytest.mark.parametrize(
    ("chunk_token_bytes", "chunk"),
    [(1024, 2048), (2 * 1024, 2048), (6 * 1024, 1024), (20 * 1024, 512)],
)
def test_chunks_are_as_large_as_few_slots_pay_for(chunk_token_bytes: int, chunk: int) -> None:
    # 128 MiB or so of slots: four of them may go for a larger chunk.
    found, slots = plan("150MiB", chunk_token_bytes)
    assert found == chunk
    assert slots >= 0.96 * (150 - 18 - chunk_token_bytes * 512 / MIB) - 1


def test_a_share_of_the_experts_pays_for_nothing_else() -> None:
    assert plan("50%", 20 * 1024) == (2048, 128)
    assert plan("100%", 20 * 1024) == (2048, 256)


@pytest.mark.parametrize(("max_model_len", "chunk"), [(500, 512), (512, 512), (600, 1024), (1025, 2048)])
def test_chunks_are_not_much_longer_than_prompts(max_model_len: int, chunk: int) -> None:
    assert plan("50%", 1024, max_model_len=max_model_len)[0] == chunk
