"""A step while it is put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgmoe.engine.schedule import BlockPairs, Chunk, SchedulerOutput
from pgmoe.engine.scheduled_sequence import ScheduledSequence


@dataclass
class StepPlan:
    """Chunks that may yet be withdrawn, and what has to be moved for those that stay."""

    tokens_left: int
    """How many more of prompts may be given out."""
    limited: int = 0
    """How many were given to sequences that have a limit of their own."""
    _chunks: dict[str, Chunk] = field(default_factory=dict)
    _swaps_out: list[tuple[int, int]] = field(default_factory=list)
    _swaps_in: list[tuple[int, int]] = field(default_factory=list)
    _sources: dict[int, int] = field(default_factory=dict)
    """What is copied, by target, in the order of use."""
    _preempted: list[str] = field(default_factory=list)

    @property
    def preempts(self) -> bool:
        """Whether somebody gives way in this step."""
        return bool(self._preempted)

    def compute(self, chunk: Chunk, copies: BlockPairs) -> None:
        """Compute a chunk, after these copies."""
        self._chunks[chunk.sequence_id] = chunk
        self._sources |= {target: source for source, target in copies}

    def swap_in(self, swaps: BlockPairs) -> None:
        """Move these blocks to the device."""
        self._swaps_in += swaps

    def preempt(self, victim: ScheduledSequence, blocks: list[int], swaps_out: BlockPairs) -> None:
        """Withdraw what was to be done for `victim`, who had these blocks, and move some to the host."""
        self._chunks.pop(victim.sequence_id, None)
        self._preempted.append(victim.sequence_id)
        # What would have been copied into its blocks is still where it was.
        withdrawn = {block: self._sources.pop(block) for block in blocks if block in self._sources}
        self._swaps_out += [(withdrawn.get(source, source), target) for source, target in swaps_out]

    def output(self) -> SchedulerOutput:
        """The step as it is."""
        return SchedulerOutput(
            chunks=tuple(sorted(self._chunks.values(), key=lambda chunk: len(chunk.token_ids) > 1)),
            swaps_out=tuple(self._swaps_out),
            swaps_in=tuple(self._swaps_in),
            copies=tuple((source, target) for target, source in self._sources.items()),
            preempted=tuple(self._preempted),
        )
