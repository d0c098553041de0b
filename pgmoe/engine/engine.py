"""The engine: takes requests, and in each step schedules, runs the model, and says what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pgmoe.config import EngineConfig
from pgmoe.engine.answers import Answers
from pgmoe.engine.assembly import assemble
from pgmoe.engine.batching import build_stepper
from pgmoe.engine.device_faults import check_device
from pgmoe.engine.failures import report
from pgmoe.engine.guide_compiler import GuideCompiler
from pgmoe.engine.intake import Intake
from pgmoe.engine.measured_needs import PROMPT_LOGPROBS_CHUNK
from pgmoe.engine.memory_plan import MemoryPlan
from pgmoe.engine.model_facts import ModelFacts
from pgmoe.engine.schedule import NewSequence
from pgmoe.engine.sequence import Sequence
from pgmoe.engine.served_model import model_info
from pgmoe.engine.stepper import Event
from pgmoe.engine.tiers import Progress
from pgmoe.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineClosed,
    EngineOverloaded,
    GenerationFailed,
    InvalidRequest,
    PgmoeError,
)
from pgmoe.metrics.stats import EngineStats
from pgmoe.models.loader import LoadedModel
from pgmoe.models.tokenizer import load_tokenizer
from pgmoe.request import Request, RequestOutput
from pgmoe.routing import Gating


@dataclass(frozen=True)
class StepOutput:
    """What one step has for one request: a piece of an answer, or the error that ends the request."""

    request_id: str
    piece: RequestOutput | None = None
    error: PgmoeError | None = None


class Engine:
    """One model and its requests. `step` belongs to one thread; `add` and `abort` may be called from any."""

    def __init__(
        self,
        config: EngineConfig,
        progress: Progress | None = None,
        wrap_gating: Callable[[Gating], Gating] | None = None,
    ) -> None:
        """Load the model. Raises ConfigError or CheckpointError. See `assemble` for `wrap_gating`."""
        self.config = config
        self.stats = EngineStats()
        self._closed = False
        self._lock = threading.Lock()  # guards scheduler and sequences, never held while the model runs
        self._sequences: dict[str, Sequence] = {}
        self._assembly = assemble(config, self.stats.experts, progress, wrap_gating)
        loaded = self._assembly.loaded
        try:
            self.tokenizer: PreTrainedTokenizerBase | None = load_tokenizer(loaded.checkpoint.folder)
            facts = ModelFacts(loaded.model)
            self.info = model_info(config, self._assembly, facts)
            built = build_stepper(config, self._assembly, self.stats, self._lock)
            self._stepper, self._scheduler = built
        except BaseException:
            self._assembly.close()
            raise
        eos = facts.eos_token_ids()
        guides = GuideCompiler(self.tokenizer, facts.vocab_size, eos)
        self._answers = Answers(self.tokenizer, eos, self.stats)
        self._intake = Intake(self.info, self.tokenizer, facts, guides, self.memory)

    @property
    def loaded(self) -> LoadedModel:
        """The model and its experts' places, for tools that look inside."""
        return self._assembly.loaded

    @property
    def gating(self) -> Gating:
        """What expects coming experts. Who runs `loaded.model` by himself has to tell it of each pass."""
        return self._assembly.gating

    @property
    def memory(self) -> MemoryPlan:
        """What the device's memory is for."""
        return self._assembly.memory

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    def has_room(self, num_answers: int = 1) -> bool:
        """Whether a request of so many answers would get its places at once."""
        taken = self._scheduler.num_running + self._scheduler.num_waiting
        return taken + num_answers <= self.config.max_running

    def accept(self, request: Request) -> Sequence:
        """Tokenise and check a request; any thread may. Its first answer, which knows the others.

        Raises InvalidRequest or PromptTooLong.
        """
        try:
            return self._intake.accept(request)
        except InvalidRequest:
            with self._lock:
                self.stats.finished["rejected"] += 1
            raise

    def add(self, sequence: Sequence) -> None:
        """Queue an accepted request; its id is free again one step after its end.

        Raises EngineOverloaded, EngineClosed, or InvalidRequest if the id is in use.
        """
        answers = (sequence, *sequence.siblings)
        with self._lock:
            self._check_open()
            taken = {s.request_id for s in self._sequences.values()} | self._sequences.keys()
            if taken & {sequence.request_id, *(answer.key for answer in answers)}:
                raise InvalidRequest(f"request id {sequence.request_id!r} is in use", "request_id")
            try:
                self._queue(sequence)
            except EngineOverloaded:
                self.stats.finished["rejected"] += 1
                raise
            self._sequences.update({answer.key: answer for answer in answers})
            self._count()

    def abort(self, request_id: str) -> None:
        """Stop a request at the next step, if it still runs; nothing more is said of it.

        Takes no lock: it may be called by the garbage collector, in the midst of anything.
        """
        for sequence in tuple(self._sequences.values()):
            if sequence.request_id == request_id:
                sequence.aborted = True

    def forget_prefixes(self) -> None:
        """Compute prompts anew that begin like those of ended requests, as if these had never been."""
        with self._lock:
            self._scheduler.forget_prefixes()

    def step(self) -> list[StepOutput]:
        """Schedule, run, and return what is new. A failure ends the requests that it concerns, no other.

        Raises EngineClosed after `close`, DeviceLost when the device does nothing any more.
        """
        self._check_open()
        outputs = self._sweep()
        try:
            events = self._stepper.step(self._sequences, self._answers.note_prompt)
        except DeviceLost:
            raise
        except Exception as error:  # no part of it failed but the step itself: the engine goes on
            check_device(error)
            events = [Event(sequence, error) for sequence in self._concerned()]
        self._count_locked()
        return outputs + [output for event in events for output in self._tell(event)]

    def close(self) -> None:
        """End all requests, stop reading experts, close files. Not during a step; may be called again."""
        with self._lock:
            self._closed = True
            open_ = list(self._sequences.values())
        for sequence in open_:
            self._end(sequence, "cancelled")
        self._assembly.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is shut down")

    def _queue(self, sequence: Sequence) -> None:
        """Its answers begin together where they can share blocks, else each reads the prompt for itself."""
        if self.memory.paged:
            self._scheduler.add(self._new_sequence(sequence))
            return
        answers, sequence.siblings = [sequence, *sequence.siblings], []
        for number, answer in enumerate(answers):
            try:
                self._scheduler.add(self._new_sequence(answer))
            except EngineOverloaded:
                for queued in answers[:number]:
                    self._scheduler.finish(queued.key)
                raise

    def _new_sequence(self, sequence: Sequence) -> NewSequence:
        kv, reports = self.memory.kv, sequence.params.prompt_logprobs is not None
        reserved = 0
        if not self.memory.paged:  # with the one block that the scheduler counts for its tokens
            reserved = kv.request_blocks(0, len(sequence.start_token_ids) + sequence.max_tokens) - 1
        return NewSequence(
            sequence_id=sequence.key,
            token_ids=sequence.start_token_ids,
            num_branches=1 + len(sequence.siblings),
            priority=sequence.priority,
            num_context_tokens=len(sequence.prompt_token_ids) if kv.keeps_prompt else 0,
            num_fixed_blocks=reserved,
            shares_prefix=not reports,
            max_chunk=PROMPT_LOGPROBS_CHUNK if reports else None,
            in_one_step=not self.memory.paged,
        )

    def _concerned(self) -> list[Sequence]:
        """Those in whose midst a step broke off; else those that run; else all."""
        with self._lock:
            every = list(self._sequences.values())
        doubtful = [s for s in every if s.in_doubt]
        return doubtful or [s for s in every if s.first_step_s is not None] or every

    def _tell(self, event: Event) -> list[StepOutput]:
        sequence, outcome = event.sequence, event.outcome
        if sequence.key not in self._sequences:  # it ended with another answer of its request
            return []
        if sequence.aborted:  # the next sweep ends it
            return []
        if isinstance(outcome, Exception):
            self._end_request(sequence.request_id, "error")
            return [StepOutput(sequence.request_id, error=report(sequence.request_id, outcome))]
        try:
            piece = self._answers.say(sequence, outcome)
        except Exception as error:  # it is this answer's alone
            return self._tell(Event(sequence, error))
        if piece.finish_reason is not None:
            self._end(sequence, piece.finish_reason)
        return [StepOutput(sequence.request_id, piece)]

    def _sweep(self) -> list[StepOutput]:
        """End what was aborted, is in doubt, or is out of time."""
        outputs = []
        now = time.perf_counter()
        with self._lock:
            sequences = list(self._sequences.values())
        for sequence in sequences:
            error: PgmoeError | None = None
            if sequence.key not in self._sequences:
                continue
            if sequence.aborted:
                self._end(sequence, "cancelled")
            elif sequence.in_doubt:
                error = GenerationFailed("the generation was interrupted in the midst of a step; ask again")
                self._end_request(sequence.request_id, "error")
            elif sequence.deadline_s is not None and now >= sequence.deadline_s:
                waited = now - sequence.submitted_s
                error = DeadlineExceeded(
                    f"not finished after {waited:.1f} s; allow more time or fewer tokens"
                )
                self._end_request(sequence.request_id, "timeout")
            if error is not None:
                outputs.append(StepOutput(sequence.request_id, error=error))
        return outputs

    def _end_request(self, request_id: str, reason: str) -> None:
        """All its answers that are not finished."""
        with self._lock:
            answers = [s for s in self._sequences.values() if s.request_id == request_id]
        for sequence in answers:
            self._end(sequence, reason)

    def _end(self, sequence: Sequence, reason: str) -> None:
        """Its blocks and its place are free at once. The last answer of a request ends that."""
        self._stepper.forget(sequence)
        with self._lock:
            del self._sequences[sequence.key]
            if sequence.key in self._scheduler:
                self._scheduler.finish(sequence.key)
            if not any(s.request_id == sequence.request_id for s in self._sequences.values()):
                self.stats.finished[reason] += 1
                self.stats.e2e_s.append(time.perf_counter() - sequence.submitted_s)
            self._count()

    def _count_locked(self) -> None:
        with self._lock:
            self._count()

    def _count(self) -> None:
        stats, scheduler = self.stats, self._scheduler
        stats.num_running, stats.num_waiting = scheduler.num_running, scheduler.num_waiting
        stats.kv_used_blocks, stats.kv_blocks = scheduler.num_used_blocks, self.memory.num_blocks
        stats.num_preemptions, stats.num_preferred = scheduler.num_preemptions, scheduler.num_preferred
        stats.prefix_queries, stats.prefix_hits = scheduler.num_prefix_queries, scheduler.num_prefix_hits
