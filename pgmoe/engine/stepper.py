"""One step of all answers: what the scheduler chose is computed, and the next tokens are chosen.

Shape letters: B answers, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from pgmoe.engine.batch_sampler import sample
from pgmoe.engine.billing import Billing
from pgmoe.engine.pace import StepPace, StepTime
from pgmoe.engine.part import Part, Runner
from pgmoe.engine.sampled_token import SampledToken
from pgmoe.engine.schedule import Chunk, SchedulerOutput
from pgmoe.engine.scheduler import Scheduler
from pgmoe.engine.sequence import Sequence
from pgmoe.metrics.stats import EngineStats


@dataclass(frozen=True)
class Event:
    """What a step brought one answer: its next token, or what ends it."""

    sequence: Sequence
    outcome: SampledToken | Exception


@dataclass(frozen=True)
class _Ready:
    """A sequence whose next token can be chosen, by these logits (1, V)."""

    sequence: Sequence
    logits: Tensor


Report = Callable[[Sequence, int, Tensor], None]
"""Told of a prompt's logits (T, V), from its token at this position on, where they are asked for."""


class Stepper:
    """Runs steps; the lock guards the scheduler and is never held while the model runs."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        move: Callable[[SchedulerOutput], None],
        billing: Billing,
        pace: StepPace,
        stats: EngineStats,
        lock: Lock,
        ended: Callable[[str], None],
    ) -> None:
        """`move` moves the KV blocks that a step needs moved; `ended` is told of each sequence's end."""
        self._scheduler = scheduler
        self._runner = runner
        self._move = move
        self._billing = billing
        self._pace = pace
        self._stats = stats
        self._lock = lock
        self._ended = ended

    def step(self, sequences: Mapping[str, Sequence], report: Report) -> list[Event]:
        """Run one; no event for answers whose prompt goes on. Raises DeviceLost."""
        with self._lock:
            num_answers = sum(s.num_generated > 0 for s in sequences.values())
            step = self._scheduler.schedule(self._pace.max_prompt_tokens(num_answers))
            for chunk in step.chunks:
                self._note_first(sequences[chunk.sequence_id])
        for key in step.preempted:
            self._runner.forget(key)
            sequences[key].num_preemptions += 1
        chosen = [(chunk, sequences[chunk.sequence_id]) for chunk in step.chunks]
        moved = [sequence for _, sequence in chosen] + [sequences[key] for key in step.preempted]
        for sequence in moved:  # the scheduler takes it for done
            sequence.in_doubt = True
        self._move(step)
        for sequence in moved:
            sequence.in_doubt = False
        outcomes = self._run(chosen)
        events, ready = [], []
        for (chunk, sequence), outcome in zip(chosen, outcomes, strict=True):
            sequence.in_doubt = True
            if not isinstance(outcome, Exception) and sequence.wants_prompt_logprobs:
                outcome = _reported(report, sequence, chunk.start, outcome)
            if isinstance(outcome, Exception):
                events += [Event(s, outcome) for s in (sequence, *sequence.siblings)]
                continue
            with self._lock:
                self._scheduler.complete([chunk])
            if chunk.samples:
                ready += self._begin_siblings(sequence, outcome[-1:])
        events += self._choose(ready)
        for _, sequence in chosen:
            sequence.in_doubt = False
        return events

    def forget(self, sequence: Sequence) -> None:
        """It has ended, wherever it was."""
        self._runner.forget(sequence.key)
        self._ended(sequence.key)

    def _note_first(self, sequence: Sequence) -> None:
        if sequence.first_step_s is None:
            sequence.first_step_s = time.perf_counter()
            sequence.cached_tokens = self._scheduler.cached_tokens(sequence.key)
            if sequence.index == 0:
                self._stats.queue_s.append(sequence.usage.queue_s)
                self._stats.prompt_tokens += len(sequence.prompt_token_ids)

    def _run(self, chosen: Many[tuple[Chunk, Sequence]]) -> list[Tensor | Exception]:
        if not chosen:
            return []
        parts = [_part(chunk, sequence) for chunk, sequence in chosen]
        num_single = sum(s.num_generated > 0 and len(c.token_ids) == 1 for c, s in chosen)
        num_tokens = sum(len(part.token_ids) for part in parts)
        begin = time.perf_counter()
        with self._billing.of([sequence for _, sequence in chosen]):
            outcomes = self._runner.run(parts)
        self._pace.observe(StepTime(num_single, num_tokens - num_single, time.perf_counter() - begin))
        return outcomes

    def _begin_siblings(self, sequence: Sequence, logits_1V: Tensor) -> list[_Ready]:
        """It, and the other answers to its prompt if they have not begun; all by the same logits."""
        siblings, sequence.siblings = sequence.siblings, []
        for sibling in siblings:
            with self._lock:
                self._scheduler.fork(sequence.key, sibling.key)
            sibling.first_step_s, sibling.cached_tokens = sequence.first_step_s, sequence.cached_tokens
        return [_Ready(each, logits_1V) for each in (sequence, *siblings)]

    def _choose(self, ready: Many[_Ready]) -> list[Event]:
        if not ready:
            return []
        logits_BV = torch.cat([each.logits for each in ready])
        outcomes = sample(logits_BV, [each.sequence.sampler for each in ready])
        with self._lock:
            for each, outcome in zip(ready, outcomes, strict=True):
                if isinstance(outcome, SampledToken):
                    self._scheduler.append(each.sequence.key, outcome.token_id)
        return [Event(each.sequence, outcome) for each, outcome in zip(ready, outcomes, strict=True)]


def _reported(report: Report, sequence: Sequence, start: int, logits_TV: Tensor) -> Tensor | Exception:
    """The logits, once they are told; or why they cannot be."""
    try:
        report(sequence, start, logits_TV)
    except Exception as error:  # it is this sequence's alone
        return error
    return logits_TV


def _part(chunk: Chunk, sequence: Sequence) -> Part:
    is_decoders_own = sequence.start_token_ids is sequence.prompt_token_ids
    return Part(
        sequence_id=chunk.sequence_id,
        token_ids=chunk.token_ids,
        start=chunk.start,
        blocks=chunk.blocks,
        context_blocks=chunk.context_blocks,
        prompt_token_ids=() if is_decoders_own else sequence.prompt_token_ids,
        all_logits=sequence.wants_prompt_logprobs,
    )
