"""What goes into the scheduler and what comes out of it: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.engine.block_manager import BLOCK_TOKENS


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What all sequences together may take."""

    max_running: int
    """Places: answers that are computed at once."""
    max_waiting: int
    """Answers more that may be asked for meanwhile."""
    num_blocks: int
    """Blocks of the device's KV cache."""
    block_tokens: int = BLOCK_TOKENS
    max_passed_over: int = 32
    """How many who came later may be admitted before a waiting sequence; after that it is the most urgent."""
    num_host_blocks: int = 0
    """Blocks in the host's memory for sequences that give way; 0: they are computed again."""
    prefix_cache: bool = True
    """Whether prefixes computed before are used again."""


@dataclass(frozen=True, kw_only=True)
class NewSequence:
    """A sequence of the decoder, as the scheduler gets it."""

    sequence_id: str
    """Unlike those of all sequences that are not finished."""
    token_ids: tuple[int, ...]
    """One at least: a prompt, or the tokens with which the answer of an encoder-decoder starts."""
    num_branches: int = 1
    """How many answers it gets, at most `max_running`. It takes as many places; `fork` makes the others."""
    priority: int = 0
    """Lower ones first."""
    num_context_tokens: int = 0
    """Of an encoder-decoder's prompt: keys and values for cross attention take blocks from admission on."""
    num_fixed_blocks: int = 0
    """Blocks that are charged for each answer's states of constant size. Nobody reads or writes them."""
    shares_prefix: bool = True
    """Whether it uses and feeds the prefix cache. One with context or fixed blocks, on which what is computed
    depends too, never does."""
    max_chunk: int | None = None
    """Most tokens that a step computes of all sequences that have one, one at least."""
    in_one_step: bool = False
    """Whether all its tokens are computed in one step, however many others a step may take."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens of one sequence that a step computes."""

    sequence_id: str
    token_ids: tuple[int, ...]
    """At positions `start`, `start + 1` and so on. Those before are in the blocks."""
    start: int
    """Where it is 0, the context, if there is one, has to be computed too, for the first time or again."""
    blocks: tuple[int, ...]
    """Where its keys and values are and go, first tokens first: room for `start + len(token_ids)` tokens."""
    context_blocks: tuple[int, ...] = ()
    """The same for the context of an encoder-decoder."""
    samples: bool = True
    """Whether no token is left to compute after it, so that its last logits give the next one."""


BlockPairs = tuple[tuple[int, int], ...]
"""(source, target)"""


@dataclass(frozen=True, kw_only=True)
class SchedulerOutput:
    """One step. Blocks are moved before chunks are computed, and have moved even if chunks fail; sequences
    whose blocks could not be moved have to be finished."""

    chunks: tuple[Chunk, ...] = ()
    """At most one of a sequence; those of a single token first."""
    swaps_out: BlockPairs = ()
    """From device to host blocks, before all else."""
    swaps_in: BlockPairs = ()
    """From host to device blocks; never in a step with `swaps_out`."""
    copies: BlockPairs = ()
    """From device to device blocks, after the swaps, in this order: a target may be an earlier source."""
    preempted: tuple[str, ...] = ()
    """Who ran before this step and waits again. What else is kept of it on the device, such as states of
    constant size, is of no use any more."""
