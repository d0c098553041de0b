from __future__ import annotations

import torch

from pgmoe.engine.block_mover import BlockMover
from pgmoe.engine.schedule import SchedulerOutput
from pgmoe.kv.pool import KvPool, LayerShape

CPU = torch.device("cpu")
SHAPE = LayerShape(1, 4, 4, torch.float32)


def pools() -> tuple[KvPool, KvPool]:
    pool, host = KvPool([SHAPE], 6, 2, CPU), KvPool([SHAPE], 2, 2, CPU)
    for block in range(6):
        pool.layers[0].keys[pool.places(block)] = block
        pool.layers[0].values[pool.places(block)] = -block
    return pool, host


def held(pool: KvPool, num_blocks: int) -> list[float]:
    return [pool.layers[0].keys[pool.places(b)].unique().item() for b in range(num_blocks)]


def test_blocks_go_out_then_in_then_are_copied() -> None:
    pool, host = pools()
    mover = BlockMover(pool, host, 128, lambda: None)
    mover.move(SchedulerOutput(swaps_out=((3, 0), (4, 1))))
    assert held(host, 2) == [3, 4]
    mover.move(SchedulerOutput(swaps_in=((1, 0),), copies=((0, 5), (5, 2))))
    assert held(pool, 6) == [4, 1, 4, 3, 4, 4]
    assert pool.layers[0].values[pool.places(2)].unique().item() == -4


def test_a_swap_pays_where_computing_takes_longer() -> None:
    pool, host = pools()
    token_s: float | None = None
    mover = BlockMover(pool, host, 1000, lambda: token_s)
    assert mover.bandwidth > 0  # measured
    mover.bandwidth = 1e6
    assert not mover.swap_pays(100)  # nobody knows what computing takes
    token_s = 0.0009  # 100 tokens: 50 blocks, there and back in 0.1 s, against 0.09 s
    assert not mover.swap_pays(100)
    token_s = 0.0011
    assert mover.swap_pays(100)


def test_without_host_memory_nothing_is_swapped() -> None:
    pool, _ = pools()
    BlockMover(pool, None, 1000, lambda: 1.0).move(SchedulerOutput(copies=((1, 0),)))
    assert held(pool, 2) == [1, 1]
    assert not BlockMover(pool, None, 1000, lambda: 1.0).swap_pays(10)
