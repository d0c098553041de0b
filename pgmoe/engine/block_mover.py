"""Moves blocks of the pool as the scheduler says, and knows when that is cheaper than computing them anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pgmoe.engine.schedule import SchedulerOutput
from pgmoe.kv.pool import KvPool

_NUM_TRIED = 8


class BlockMover:
    """Of one device pool, and of one in host memory for sequences that gave way."""

    def __init__(
        self,
        pool: KvPool,
        host_pool: KvPool | None,
        block_bytes: int,
        prompt_token_s: Callable[[], float | None],
    ) -> None:
        """The pools are empty yet. `prompt_token_s`: what computing a token took lately."""
        self._pool = pool
        self._host_pool = host_pool
        self._block_bytes = block_bytes
        self._prompt_token_s = prompt_token_s
        self.bandwidth = 0.0
        """Bytes per second between the two, as the last swap had them; at first, as blocks tried had them."""
        if host_pool is not None:
            some = [(0, block) for block in range(min(_NUM_TRIED, host_pool.num_blocks))]
            for _ in range(2):  # memory that is touched for the first time is slow
                self._swap(pool, host_pool, some)

    def move(self, step: SchedulerOutput) -> None:
        """What has to be moved before a step's chunks are computed."""
        if self._host_pool is not None:
            self._swap(self._pool, self._host_pool, step.swaps_out)
            self._swap(self._host_pool, self._pool, step.swaps_in)
        self._pool.copy_to(self._pool, step.copies)

    def swap_pays(self, num_tokens: int) -> bool:
        """Whether moving so many tokens to the host and back is sooner done than computing them again."""
        token_s = self._prompt_token_s()
        if token_s is None or not self.bandwidth:
            return False
        num_blocks = -(-num_tokens // self._pool.block_tokens)
        return 2 * num_blocks * self._block_bytes / self.bandwidth < num_tokens * token_s

    def _swap(self, source: KvPool, target: KvPool, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        begin = time.perf_counter()
        source.copy_to(target, pairs)
        seconds = time.perf_counter() - begin
        self.bandwidth = len(pairs) * self._block_bytes / max(seconds, 1e-9)
