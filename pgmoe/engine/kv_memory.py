"""Where the keys and values of scheduled sequences are: on the device, in the host's memory, or nowhere."""

from __future__ import annotations

from collections.abc import Iterable

from pgmoe.engine.block_manager import BlockManager
from pgmoe.engine.schedule import BlockPairs
from pgmoe.engine.scheduled_sequence import ScheduledSequence


class KvMemory:
    """Gives blocks to sequences and takes them back. Who gets them is the scheduler's choice."""

    def __init__(self, num_blocks: int, block_tokens: int, num_host_blocks: int) -> None:
        self.block_tokens = block_tokens
        self._device = BlockManager(num_blocks, block_tokens)
        self._host = BlockManager(num_host_blocks, block_tokens)

    @property
    def num_free(self) -> int:
        """Device blocks that no sequence holds."""
        return self._device.num_free

    @property
    def num_used(self) -> int:
        """Device blocks that sequences hold; shared ones count once."""
        return self._device.num_used

    def fits_alone(self, sequence: ScheduledSequence) -> bool:
        """Whether its tokens so far would fit if nobody else had blocks."""
        num_blocks = self._device.blocks_for(len(sequence.token_ids)) + self._num_constant(sequence)
        return num_blocks <= self._device.num_blocks

    def has_room_for(self, sequence: ScheduledSequence) -> bool:
        """Whether a waiting sequence could get all the blocks that it needs to begin."""
        prefix = self._cached_prefix(sequence)
        missing = self._num_token_blocks(sequence) + self._num_constant(sequence) - len(prefix)
        return missing <= self._device.num_free - self._device.num_free_of(prefix)

    def place(self, sequence: ScheduledSequence) -> BlockPairs:
        """Give a waiting sequence, for which there is room, its blocks; returns the swaps in that it needs.

        Tokens whose keys and values are in the blocks, from the host or from the prefix cache, are computed.
        """
        prefix = self._cached_prefix(sequence)
        self._device.hold(prefix)
        sequence.blocks = prefix + self._device.take(self._num_token_blocks(sequence) - len(prefix))
        sequence.context_blocks = self._device.take(self._num_context(sequence))
        sequence.fixed_blocks = self._device.take(sequence.places * sequence.new.num_fixed_blocks)
        if sequence.host_blocks:
            sources, sequence.host_blocks = sequence.host_blocks, []
            self._host.release(sources)
            return tuple(zip(sources, self._filled_blocks(sequence), strict=True))
        sequence.num_registered = len(prefix)
        sequence.num_computed = len(prefix) * self.block_tokens
        return ()

    def num_missing(self, sequence: ScheduledSequence, count: int) -> int:
        """How many free blocks it takes to write its next `count` tokens."""
        end = sequence.num_computed + count
        return max(0, self._device.blocks_for(end) - len(sequence.blocks)) + self._must_copy(sequence)

    def extend(self, sequence: ScheduledSequence, count: int) -> BlockPairs:
        """Make its blocks ready for its next `count` tokens; returns the copies that this takes."""
        missing = self.num_missing(sequence, count)
        copies: BlockPairs = ()
        if self._must_copy(sequence):
            first = sequence.num_computed // self.block_tokens
            source, missing = sequence.blocks[first], missing - 1
            sequence.blocks[first] = self._device.replace_shared(source)
            copies = ((source, sequence.blocks[first]),)
        sequence.blocks += self._device.take(missing)
        for block in sequence.blocks[sequence.num_computed // self.block_tokens :]:
            assert not self._device.is_shared(block), f"block {block} would be written for two"
            assert not self._device.is_registered(block), f"block {block} would be written again"
        return copies

    def register(self, sequence: ScheduledSequence) -> None:
        """Let others find its blocks that are full of computed tokens."""
        if not sequence.shares_prefix:
            return
        blocks, size = sequence.blocks, self.block_tokens
        for i in range(sequence.num_registered, sequence.num_computed // size):
            parent = blocks[i - 1] if i else None
            tokens = sequence.token_ids[i * size : (i + 1) * size]
            blocks[i] = self._device.register(blocks[i], parent, tokens)
            sequence.num_registered = i + 1

    def share(self, sequence: ScheduledSequence, branch: ScheduledSequence) -> None:
        """Let a new branch hold what its sequence has computed, and its own part of the fixed blocks."""
        branch.num_computed = sequence.num_computed
        branch.num_registered = sequence.num_registered
        # Not those that wait for the next token: each writes its own.
        branch.blocks = sequence.blocks[: self._device.blocks_for(sequence.num_computed)]
        branch.context_blocks = list(sequence.context_blocks)
        self._device.hold(branch.blocks + branch.context_blocks)
        kept = sequence.places * sequence.new.num_fixed_blocks
        branch.fixed_blocks = sequence.fixed_blocks[kept:]
        sequence.fixed_blocks = sequence.fixed_blocks[:kept]

    def can_swap_out(self, sequence: ScheduledSequence) -> bool:
        """Whether the host has room for what was computed of it. States of constant size are not moved."""
        if not sequence.num_computed or sequence.fixed_blocks:
            return False
        return len(self._filled_blocks(sequence)) <= self._host.num_free

    def swap_out(self, sequence: ScheduledSequence) -> BlockPairs:
        """Give its device blocks back, and host blocks in their place; returns the swaps that this takes."""
        sources = self._filled_blocks(sequence)
        host_blocks = self._host.take(len(sources))
        self._release_device(sequence)
        sequence.host_blocks = host_blocks
        return tuple(zip(sources, host_blocks, strict=True))

    def release(self, sequence: ScheduledSequence) -> None:
        """Give all its blocks back, wherever they are: nothing of it is computed any more."""
        self._release_device(sequence)
        self._host.release(sequence.host_blocks)
        sequence.host_blocks = []
        sequence.num_computed = 0

    def forget_prefixes(self) -> None:
        """Find no prefix any more but those that sequences hold."""
        self._device.forget_free()

    def check_integrity(self, sequences: Iterable[ScheduledSequence]) -> None:
        """Assert that blocks are held by these sequences, and as they should be."""
        present = list(sequences)
        self._device.check_integrity(
            block for s in present for block in (*s.blocks, *s.context_blocks, *s.fixed_blocks)
        )
        self._host.check_integrity(block for s in present for block in s.host_blocks)
        for s in present:
            if s.blocks:
                assert len(s.context_blocks) == self._num_context(s)
                assert len(s.fixed_blocks) == s.places * s.new.num_fixed_blocks
                assert len(s.blocks) >= self._device.blocks_for(s.num_computed)
                assert s.num_registered <= s.num_computed // self.block_tokens
                assert all(map(self._device.is_registered, s.blocks[: s.num_registered]))
            else:
                assert not s.context_blocks
                assert not s.fixed_blocks
                assert bool(s.num_computed) == bool(s.host_blocks), "computed, but nowhere"

    def _cached_prefix(self, sequence: ScheduledSequence) -> list[int]:
        if sequence.host_blocks or not sequence.shares_prefix:
            return []
        return self._device.find_prefix(sequence.token_ids)

    def _num_token_blocks(self, sequence: ScheduledSequence) -> int:
        """For its tokens and one more: who could not take the next step either would soon give way again."""
        num_blocks = self._device.blocks_for(len(sequence.token_ids) + 1)
        return min(num_blocks, self._device.num_blocks - self._num_constant(sequence))

    def _num_context(self, sequence: ScheduledSequence) -> int:
        return self._device.blocks_for(sequence.new.num_context_tokens)

    def _num_constant(self, sequence: ScheduledSequence) -> int:
        return self._num_context(sequence) + sequence.places * sequence.new.num_fixed_blocks

    def _filled_blocks(self, sequence: ScheduledSequence) -> list[int]:
        """Those that hold something computed: of the context, too."""
        num_blocks = self._device.blocks_for(sequence.num_computed)
        return sequence.blocks[:num_blocks] + sequence.context_blocks

    def _must_copy(self, sequence: ScheduledSequence) -> bool:
        """Whether its next token goes into a block that a branch holds too."""
        first, used = divmod(sequence.num_computed, self.block_tokens)
        return used > 0 and self._device.is_shared(sequence.blocks[first])

    def _release_device(self, sequence: ScheduledSequence) -> None:
        self._device.release(sequence.blocks)
        self._device.release(sequence.context_blocks)
        self._device.release(sequence.fixed_blocks)
        sequence.blocks, sequence.context_blocks, sequence.fixed_blocks = [], [], []
        sequence.num_registered = 0
