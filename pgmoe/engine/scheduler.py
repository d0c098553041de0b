"""Who runs next. Knows names of sequences, their tokens and blocks: no model, no device, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from pgmoe.engine.kv_memory import KvMemory
from pgmoe.engine.schedule import BlockPairs, Chunk, NewSequence, SchedulerLimits, SchedulerOutput
from pgmoe.engine.scheduled_sequence import ScheduledSequence
from pgmoe.engine.step_plan import StepPlan
from pgmoe.engine.waiting_queue import WaitingQueue
from pgmoe.errors import EngineOverloaded

Prefer = Callable[[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], str | None]
"""(who waits, who runs), each with its tokens and in order, to who is to be admitted; None: the first."""


MOST_CHOICES = 8
"""Of those who wait, the first ones are offered: each costs time, in which nothing is computed."""


def _never_pays(num_computed_tokens: int) -> bool:
    return False


class Scheduler:
    """Continuous batching: each step computes the next token of all who run, and so much of prompts.

    A sequence has tokens that are computed and tokens that are left; prompts, answers and what has to be
    computed again differ in nothing else. A step is `schedule`, `complete` with the chunks that were
    computed, `append` of the tokens sampled from them. Who is done is taken out by `finish`.

    Sequences run in `max_running` places. Who is most urgent (lowest priority, then earliest arrival) gets
    blocks first; if there are none, the least urgent one gives way and waits again. So whoever is the most
    urgent of all comes to its end, then the next: everybody ends if everybody fits alone.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        *,
        swap_pays: Callable[[int], bool] = _never_pays,
        prefer: Prefer | None = None,
    ) -> None:
        """`swap_pays` is asked whether so many computed tokens are sooner moved to the host and back than
        computed again. `prefer` is asked whom to admit next of the most urgent class, where several of it
        could be."""
        self._limits = limits
        self._swap_pays = swap_pays
        self._prefer = prefer
        self._memory = KvMemory(limits.num_blocks, limits.block_tokens, limits.num_host_blocks)
        self._sequences: dict[str, ScheduledSequence] = {}
        self._running: dict[str, ScheduledSequence] = {}
        self._waiting = WaitingQueue()
        self._num_arrivals = 0
        self.num_preferred = 0
        """How often another was admitted than the first, so far."""
        self.num_preemptions = 0
        """How often a running sequence had to give way, so far."""
        self.num_prefix_queries = 0
        """Tokens of prompts looked up in the prefix cache, so far; once each, whoever is preempted."""
        self.num_prefix_hits = 0
        """Those of them that were found."""

    @property
    def num_running(self) -> int:
        """Places that are taken."""
        return sum(sequence.places for sequence in self._running.values())

    @property
    def num_waiting(self) -> int:
        """Places that waiting sequences ask for, those included that ran before."""
        return sum(sequence.places for sequence in self._waiting)

    @property
    def num_free_blocks(self) -> int:
        """Device blocks that no sequence holds, though they may hold prefixes."""
        return self._memory.num_free

    @property
    def num_used_blocks(self) -> int:
        """Device blocks that sequences hold; shared ones count once."""
        return self._memory.num_used

    def __contains__(self, sequence_id: str) -> bool:
        """Whether it was added or forked, and is not finished."""
        return sequence_id in self._sequences

    def cached_tokens(self, sequence_id: str) -> int:
        """Tokens of its prompt that came from the prefix cache when it was first admitted; 0 before."""
        return self._sequences[sequence_id].cached_tokens or 0

    def add(self, new: NewSequence) -> None:
        """Put a sequence at the end of its priority's queue.

        Raises EngineOverloaded, changing nothing, if too few places, running and waiting, are left for it.
        Asserts that it could run if it were alone.
        """
        assert new.sequence_id not in self._sequences, f"{new.sequence_id!r} is there already"
        assert new.token_ids, "nothing to compute"
        assert new.max_chunk is None or (new.max_chunk > 0 and not new.in_one_step), new
        assert 1 <= new.num_branches <= self._limits.max_running, new.num_branches
        limit = self._limits.max_running + self._limits.max_waiting
        if self.num_running + self.num_waiting + new.num_branches > limit:
            raise EngineOverloaded(
                f"{self.num_running} requests run and {self.num_waiting} wait, the limit is {limit}; "
                "try again later"
            )
        depends_on_more = new.num_context_tokens or new.num_fixed_blocks
        sequence = ScheduledSequence(
            sequence_id=new.sequence_id,
            new=new,
            token_ids=list(new.token_ids),
            arrival=self._num_arrivals,
            places=new.num_branches,
            patience=self._limits.max_passed_over,
            shares_prefix=self._limits.prefix_cache and new.shares_prefix and not depends_on_more,
        )
        assert self._memory.fits_alone(sequence), f"{new} does not fit into {self._limits.num_blocks} blocks"
        self._num_arrivals += new.num_branches
        self._sequences[new.sequence_id] = sequence
        self._waiting.push(sequence)

    def schedule(self, max_prompt_tokens: int) -> SchedulerOutput:
        """The next step. What it says about blocks is already so when this returns.

        All running sequences with one token left get it. Those with more, and after them newly admitted ones,
        get at most `max_prompt_tokens`, at least 1, together. As long as each running one has tokens left, a
        chunk comes out wherever anybody runs or waits. Asserts that who lacks blocks would fit alone.
        """
        assert max_prompt_tokens > 0, max_prompt_tokens
        step = StepPlan(max_prompt_tokens)
        by_urgency = sorted(self._running.values(), key=lambda sequence: sequence.urgency)
        for sequence in by_urgency:
            if sequence.num_left == 1 and sequence.sequence_id in self._running:
                self._give(step, sequence, 1)
        for sequence in by_urgency:
            if sequence.num_left > 1 and sequence.sequence_id in self._running:
                self._give_prompt_tokens(step, sequence)
        # Whoever was admitted now might take the very blocks for which another gave way. Besides, no block is
        # then swapped in before it is read for a swap out or a copy.
        if not step.preempts:
            self._admit(step)
        return step.output()

    def complete(self, chunks: Iterable[Chunk]) -> None:
        """Note that these chunks of the last step were computed; others will be scheduled again."""
        for chunk in chunks:
            sequence = self._running[chunk.sequence_id]
            assert chunk.start == sequence.num_computed, f"{chunk} is not what comes next"
            sequence.num_computed += len(chunk.token_ids)
            self._memory.register(sequence)

    def append(self, sequence_id: str, token_id: int) -> None:
        """Add a token to a sequence, before the next `schedule`, which lets a step compute it."""
        self._sequences[sequence_id].token_ids.append(token_id)

    def fork(self, sequence_id: str, new_id: str) -> None:
        """Start another answer, `new_id`, to the same prompt: it runs at once, in a place kept for it.

        To be called when the whole prompt is computed, before anything is appended.
        """
        sequence = self._running[sequence_id]
        assert new_id not in self._sequences, f"{new_id!r} is there already"
        assert not sequence.num_left, f"{sequence_id!r} has {sequence.num_left} tokens left to compute"
        branch = sequence.branch(new_id)
        self._memory.share(sequence, branch)
        self._sequences[new_id] = self._running[new_id] = branch

    def finish(self, sequence_id: str) -> None:
        """Take a sequence out, wherever it is. Its blocks and places, also those kept for branches that were
        not forked, are free at once."""
        sequence = self._sequences.pop(sequence_id)
        if self._running.pop(sequence_id, None) is None:
            self._waiting.remove(sequence_id)
        self._memory.release(sequence)

    def forget_prefixes(self) -> None:
        """Find no prefix any more but those of running sequences."""
        self._memory.forget_prefixes()

    def check_integrity(self) -> None:
        """Assert that all invariants hold; for tests."""
        assert self.num_running <= self._limits.max_running
        assert self._sequences.keys() == self._running.keys() | {s.sequence_id for s in self._waiting}
        assert len(self._sequences) == len(self._running) + len(self._waiting), "somebody runs and waits"
        assert all(sequence.blocks for sequence in self._running.values())
        assert not any(sequence.blocks for sequence in self._waiting)
        self._memory.check_integrity(self._sequences.values())

    def _give(self, step: StepPlan, sequence: ScheduledSequence, count: int) -> None:
        """Let it compute so many tokens. Less urgent ones give way, or itself if there are none."""
        while self._memory.num_missing(sequence, count) > self._memory.num_free:
            assert self._memory.fits_alone(sequence), f"{sequence.sequence_id!r} has outgrown all blocks"
            victim = max(self._running.values(), key=lambda other: other.urgency)
            self._preempt(step, victim)
            if victim is sequence:
                return
        copies = self._memory.extend(sequence, count)
        step.compute(sequence.chunk(count, self._limits.block_tokens), copies)

    def _give_prompt_tokens(self, step: StepPlan, sequence: ScheduledSequence) -> None:
        new, count = sequence.new, min(sequence.num_left, step.tokens_left)
        if new.max_chunk is not None:
            count = min(count, max(0, new.max_chunk - step.limited))
            step.limited += count
        if new.in_one_step and step.tokens_left:
            count = sequence.num_left
        if count:
            context = 0 if sequence.num_computed else new.num_context_tokens
            step.tokens_left = max(0, step.tokens_left - count - context)
            self._give(step, sequence, count)

    def _preempt(self, step: StepPlan, victim: ScheduledSequence) -> None:
        del self._running[victim.sequence_id]
        self.num_preemptions += 1
        blocks = victim.blocks
        swaps_out: BlockPairs = ()
        if self._memory.can_swap_out(victim) and self._swap_pays(victim.num_computed):
            swaps_out = self._memory.swap_out(victim)
        else:
            self._memory.release(victim)
        step.preempt(victim, blocks, swaps_out)
        victim.preempted = True
        self._waiting.push(victim)

    def _admit(self, step: StepPlan) -> None:
        while step.tokens_left and (sequence := self._next_to_admit(step)) is not None:
            self.num_preferred += sequence is not self._waiting.head()
            self._waiting.admit(sequence)
            self._running[sequence.sequence_id] = sequence
            step.swap_in(self._memory.place(sequence))
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.num_computed
                self.num_prefix_queries += len(sequence.token_ids) if sequence.shares_prefix else 0
                self.num_prefix_hits += sequence.num_computed
            self._give_prompt_tokens(step, sequence)

    def _next_to_admit(self, step: StepPlan) -> ScheduledSequence | None:
        """The first who waits, if it can be admitted, or one of its class that is preferred."""
        head = self._waiting.head()
        if head is None or not self._can_admit(head, step):
            return None
        if self._prefer is None:
            return head
        admissible = (peer for peer in self._waiting.peers(head) if self._can_admit(peer, step))
        waiting = {peer.sequence_id: peer.token_ids for peer in islice(admissible, MOST_CHOICES)}
        if len(waiting) == 1:
            return head
        running = {name: sequence.token_ids for name, sequence in self._running.items()}
        preferred = self._prefer(waiting, running)
        return head if preferred is None else self._sequences[preferred]

    def _can_admit(self, sequence: ScheduledSequence, step: StepPlan) -> bool:
        if step.limited >= (sequence.new.max_chunk or step.limited + 1):
            return False  # it would get none of this step
        has_places = self.num_running + sequence.places <= self._limits.max_running
        return has_places and self._memory.has_room_for(sequence)
