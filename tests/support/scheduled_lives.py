"""Sequences that a scheduler is driven with, and all that must be so in each step."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any

from pgmoe.engine.schedule import Chunk, NewSequence, SchedulerLimits, SchedulerOutput
from pgmoe.engine.scheduler import Scheduler
from tests.support.kv_device import KvDevice

NEVER = 1000
"""Times that nobody is passed over."""


@dataclass
class Life:
    """One sequence, as whoever asked for it sees it."""

    new: NewSequence
    arrival: int
    token_ids: list[int]
    final_length: int
    root: Hashable
    """What its values depend on besides its tokens."""
    places: int
    running: bool = False
    num_computed: int = 0
    passed_over: int = 0

    @property
    def num_left(self) -> int:
        return len(self.token_ids) - self.num_computed


class ScheduledLives:
    """Drives a scheduler, and a device with it, and asserts what must hold after each step."""

    def __init__(self, limits: SchedulerLimits, **choices: Any) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits, **choices)
        self.device = KvDevice(limits.block_tokens)
        self.lives: dict[str, Life] = {}
        self.num_arrivals = 0
        self.in_step = False
        """Also after a step that did not come to its end."""

    def capacity(self, num_context_tokens: int, num_fixed_blocks: int) -> int:
        """Most tokens of a sequence that fits alone."""
        context = -(-num_context_tokens // self.limits.block_tokens)
        return (self.limits.num_blocks - context - num_fixed_blocks) * self.limits.block_tokens

    def add(self, new: NewSequence, final_length: int) -> None:
        """May raise EngineOverloaded."""
        self.scheduler.add(new)
        self.num_arrivals += 1
        own = new.sequence_id if new.num_context_tokens else None
        self.lives[new.sequence_id] = Life(
            new=new,
            arrival=self.num_arrivals,
            token_ids=list(new.token_ids),
            final_length=final_length,
            root=own,
            places=new.num_branches,
        )

    def finish(self, name: str) -> None:
        self.scheduler.finish(name)
        del self.lives[name]

    def step(
        self, max_prompt_tokens: int, fails: Collection[int] = (), num_forks: int = 9
    ) -> SchedulerOutput:
        """One step in which some of the chunks fail; who has its final length afterwards is finished."""
        self.in_step = True
        output = self.scheduler.schedule(max_prompt_tokens)
        self._check_chunks(output, max_prompt_tokens)
        self._note_who_runs(output)
        self._compute(output, fails)
        done = [chunk for i, chunk in enumerate(output.chunks) if i not in fails]
        self.scheduler.complete(done)
        for chunk in done:
            self.lives[chunk.sequence_id].num_computed += len(chunk.token_ids)
        for chunk in done:
            if chunk.samples:
                self._answer(chunk.sequence_id, num_forks)
        self.in_step = False
        return output

    def check(self) -> None:
        """What holds between steps."""
        self.scheduler.check_integrity()
        running = sum(life.places for life in self.lives.values() if life.running)
        assert self.scheduler.num_running == running <= self.limits.max_running
        assert self.scheduler.num_running + self.scheduler.num_waiting == sum(
            life.places for life in self.lives.values()
        )
        if not running:
            assert self.scheduler.num_used_blocks == 0

    def _check_chunks(self, output: SchedulerOutput, max_prompt_tokens: int) -> None:
        assert bool(output.chunks) == bool(self.lives), "nothing goes on"
        lengths = [len(chunk.token_ids) for chunk in output.chunks]
        is_long = [length > 1 for length in lengths]
        assert is_long == sorted(is_long), "single tokens come first"
        names = [chunk.sequence_id for chunk in output.chunks]
        assert len({*names, *output.preempted}) == len(names) + len(output.preempted)
        num_prompt_tokens, num_limited, limits = 0, 0, [0]
        for chunk in output.chunks:
            life = self.lives[chunk.sequence_id]
            end = chunk.start + len(chunk.token_ids)
            assert chunk.token_ids == tuple(life.token_ids[chunk.start : end]) != ()
            assert chunk.samples == (end == len(life.token_ids))
            if life.new.in_one_step:
                assert chunk.samples, "what is computed in one step is cut"
            if life.running:
                assert chunk.start == life.num_computed, "a token is lost or computed twice"
            if life.running and life.num_left == 1:
                continue
            if not life.new.in_one_step:
                num_prompt_tokens += len(chunk.token_ids)
            if life.new.max_chunk is not None:
                num_limited += len(chunk.token_ids)
                limits.append(life.new.max_chunk)
        assert num_prompt_tokens <= max_prompt_tokens
        assert num_limited <= max(limits), "they share what a step computes of them"
        answering = {name for name, life in self.lives.items() if life.running and life.num_left == 1}
        assert answering <= {*names, *output.preempted}, "an answer does not go on"

    def _note_who_runs(self, output: SchedulerOutput) -> None:
        for name in output.preempted:
            assert self.lives[name].running
            self.lives[name].running = False
        self._check_who_gave_way(output)
        for chunk in output.chunks:
            life = self.lives[chunk.sequence_id]
            life.num_computed = chunk.start
            if not life.running:
                life.running = True
                self._pass_over(life, {chunk.sequence_id for chunk in output.chunks})

    def _check_who_gave_way(self, output: SchedulerOutput) -> None:
        if 0 < self.limits.max_passed_over < NEVER:
            return  # who is out of patience when depends on the order in which a step admits
        by_priority = self.limits.max_passed_over > 0
        running = [life for life in self.lives.values() if life.running]
        for victim in map(self.lives.__getitem__, output.preempted):
            for other in running:
                ranks = [(life.new.priority * by_priority, life.arrival) for life in (victim, other)]
                assert ranks[0] >= ranks[1], "a more urgent one gave way"

    def _pass_over(self, admitted: Life, chunk_names: Collection[str]) -> None:
        for name, other in self.lives.items():
            if not other.running and name not in chunk_names and other.arrival < admitted.arrival:
                other.passed_over += 1
                assert other.passed_over <= self.limits.max_passed_over, f"{name} starves"

    def _compute(self, output: SchedulerOutput, fails: Collection[int]) -> None:
        self.device.move(output)
        self._check_contexts(output.chunks)
        for chunk in output.chunks:
            life = self.lives[chunk.sequence_id]
            self.device.check(chunk, life.root, life.token_ids[: chunk.start])
        for i, chunk in enumerate(output.chunks):
            life = self.lives[chunk.sequence_id]
            self.device.write(chunk, life.root, life.token_ids, fails=i in fails)
        for i, chunk in enumerate(output.chunks):  # again: nobody wrote into another's blocks
            life = self.lives[chunk.sequence_id]
            end = chunk.start + (0 if i in fails else len(chunk.token_ids))
            self.device.check(chunk, life.root, life.token_ids[:end])

    def _check_contexts(self, chunks: Collection[Chunk]) -> None:
        owners: dict[int, Hashable] = {}
        for chunk in chunks:
            life = self.lives[chunk.sequence_id]
            size = -(-life.new.num_context_tokens // self.limits.block_tokens)
            assert len(chunk.context_blocks) == len({*chunk.context_blocks}) == size
            for block in chunk.context_blocks:
                assert owners.setdefault(block, life.root) == life.root, "a context is shared"
        assert not any(block in owners for chunk in chunks for block in chunk.blocks)

    def _answer(self, name: str, num_forks: int) -> None:
        life = self.lives[name]
        names = [name]
        while life.places > 1 and num_forks:
            names.append(f"{name}.{life.places}")
            num_forks -= 1
            life.places -= 1
            self.scheduler.fork(name, names[-1])
            self.lives[names[-1]] = Life(**vars(life) | {"places": 1, "token_ids": list(life.token_ids)})
        for i, branch in enumerate(names):
            answer = self.lives[branch]
            num_missing = answer.final_length - len(answer.token_ids)
            if not num_missing:
                self.finish(branch)
            seed = answer.arrival + i + len(answer.token_ids)
            for j in range(min(num_missing, 2 if seed % 3 == 0 else 1)):  # some answers' tokens come in pairs
                answer.token_ids.append((seed + j) % 2)
                self.scheduler.append(branch, answer.token_ids[-1])
