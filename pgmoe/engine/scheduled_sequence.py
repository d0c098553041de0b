"""What the scheduler knows of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgmoe.engine.schedule import Chunk, NewSequence


@dataclass(kw_only=True, eq=False)
class ScheduledSequence:
    """One sequence, waiting or running. Only those that run have device blocks."""

    sequence_id: str
    new: NewSequence
    """As it came; a branch has that of the sequence it was forked from."""
    token_ids: list[int]
    """All its tokens so far, those of the answer too."""
    arrival: int
    """Earlier ones are lower; no two have the same."""
    places: int
    """One, and one for each branch that is yet to be forked."""
    patience: int
    """How many who arrived later may yet be admitted before it."""
    shares_prefix: bool
    num_computed: int = 0
    """Its first tokens, whose keys and values are in its blocks, or in its host blocks."""
    num_registered: int = 0
    """Its first blocks, which are part of the prefix cache."""
    blocks: list[int] = field(default_factory=list)
    context_blocks: list[int] = field(default_factory=list)
    fixed_blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    """Where its computed tokens and its context are while it is swapped out."""
    cached_tokens: int | None = None
    """Tokens that came from the prefix cache when it was admitted; None before."""
    preempted: bool = False
    """Whether it ran before, and waits again."""

    @property
    def num_left(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.token_ids) - self.num_computed

    @property
    def urgency(self) -> tuple[int, int, int]:
        """Lower ones are more urgent: those out of patience, then by priority; earlier ones among equals."""
        return (1, self.new.priority, self.arrival) if self.patience else (0, 0, self.arrival)

    def chunk(self, count: int, block_tokens: int) -> Chunk:
        """Its next tokens, for which it has the blocks."""
        end = self.num_computed + count
        return Chunk(
            sequence_id=self.sequence_id,
            token_ids=tuple(self.token_ids[self.num_computed : end]),
            start=self.num_computed,
            blocks=tuple(self.blocks[: -(-end // block_tokens)]),
            context_blocks=tuple(self.context_blocks),
            samples=count == self.num_left,
        )

    def branch(self, sequence_id: str) -> ScheduledSequence:
        """Another sequence of the same tokens, without blocks, which takes one of its places."""
        assert self.places > 1, f"{self.sequence_id!r} has no places left for branches"
        self.places -= 1
        return ScheduledSequence(
            sequence_id=sequence_id,
            new=self.new,
            token_ids=list(self.token_ids),
            arrival=self.arrival + self.places,  # as many numbers as places were given out
            places=1,
            patience=self.patience,
            shares_prefix=self.shares_prefix,
            cached_tokens=self.cached_tokens,
        )
