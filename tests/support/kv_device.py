"""A device that has only a KV cache, to hold schedules against: what is in each block, and what should be."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pgmoe.engine.schedule import Chunk, SchedulerOutput

Value = int
"""Stands for the keys and values of a token. They depend on all tokens before it, and on the context."""

BROKEN: Value = -1
"""What a step that failed may have left behind."""


class KvDevice:
    """Moves and writes blocks as a schedule says. Each chunk must find the values of all earlier tokens."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._blocks: dict[int, list[Value]] = {}
        self._host_blocks: dict[int, list[Value]] = {}
        self._values: dict[tuple[Hashable, int], Value] = {}

    def move(self, output: SchedulerOutput) -> None:
        """What comes before all chunks."""
        assert len({host for _, host in output.swaps_out}) == len(output.swaps_out), "one swap over another"
        for device, host in output.swaps_out:
            self._host_blocks[host] = list(self._blocks[device])
        for host, device in output.swaps_in:
            self._blocks[device] = self._host_blocks.pop(host)  # a KeyError: it is not there
        for source, target in output.copies:
            self._blocks[target] = list(self._blocks[source])

    def write(self, chunk: Chunk, root: Hashable, token_ids: Sequence[int], *, fails: bool) -> None:
        """Compute a chunk of the sequence that has these tokens, after what its root stands for."""
        end = chunk.start + len(chunk.token_ids)
        assert len(chunk.blocks) == -(-end // self._block_tokens)
        values = [BROKEN] * end if fails else self._expected(root, token_ids[:end])
        for position in range(chunk.start, end):
            self._block(chunk.blocks, position)[position % self._block_tokens] = values[position]
        if chunk.start == 0:
            for block, value in zip(chunk.context_blocks, self._context(root, chunk), strict=True):
                self._blocks[block] = [BROKEN if fails else value] * self._block_tokens

    def check(self, chunk: Chunk, root: Hashable, token_ids: Sequence[int]) -> None:
        """Assert that the blocks of a chunk hold the values of these first tokens of its sequence."""
        for position, value in enumerate(self._expected(root, token_ids)):
            found = self._block(chunk.blocks, position)[position % self._block_tokens]
            assert found == value, f"position {position} of {chunk} is another's, or lost"
        if token_ids:
            for block, value in zip(chunk.context_blocks, self._context(root, chunk), strict=True):
                assert self._blocks[block] == [value] * self._block_tokens, f"the context of {chunk} is lost"

    def _block(self, blocks: Sequence[int], position: int) -> list[Value]:
        block = blocks[position // self._block_tokens]
        return self._blocks.setdefault(block, [BROKEN] * self._block_tokens)

    def _expected(self, root: Hashable, token_ids: Sequence[int]) -> list[Value]:
        values: list[Value] = []
        for token_id in token_ids:
            values.append(self._value(values[-1] if values else ("root", root), token_id))
        return values

    def _context(self, root: Hashable, chunk: Chunk) -> list[Value]:
        return [self._value(("context", root), i) for i in range(len(chunk.context_blocks))]

    def _value(self, parent: Hashable, token_id: int) -> Value:
        return self._values.setdefault((parent, token_id), len(self._values))
