"""The engine: takes requests, and in each step schedules, runs the model, and says what came of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import Assembly, assemble
from pgmoe.engine.detokenizer import token_text
from pgmoe.engine.intake import Intake
from pgmoe.engine.memory_plan import MemoryPlan
from pgmoe.engine.runner import ModelRunner
from pgmoe.engine.sampler import SampledToken
from pgmoe.engine.scheduler import Scheduler
from pgmoe.engine.sequence import Sequence
from pgmoe.engine.tiers import Progress
from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    GenerationFailed,
    InvalidRequest,
    PgmoeError,
)
from pgmoe.metrics.stats import EngineStats
from pgmoe.models.loader import LoadedModel
from pgmoe.models.tokenizer import load_tokenizer
from pgmoe.request import FinishReason, ModelInfo, Request, RequestOutput, TokenLogprob
from pgmoe.routing import Gating

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """What one step has for one request: a piece of its answer, or the error that ends it."""

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
        self._assembly = assemble(config, self.stats.experts, progress, wrap_gating)
        loaded, device = self._assembly.loaded, self._assembly.device
        try:
            self.tokenizer: PreTrainedTokenizerBase | None = load_tokenizer(loaded.checkpoint.folder)
            self._runner = ModelRunner(loaded.model, device, config.prefill_chunk)
            self._eos = self._runner.eos_token_ids()
            self.info = _model_info(config, self._assembly, self._runner)
        except BaseException:
            self._assembly.close()
            raise
        memory = self._assembly.memory
        self._intake = Intake(self.info, self.tokenizer, self._runner, device, memory)
        self._scheduler = Scheduler(config.max_running, config.max_waiting, memory.kv_capacity)
        self._sequences: dict[str, Sequence] = {}
        self._closed = False
        self._lock = threading.Lock()  # guards scheduler and sequences, never held while the model runs

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

    @property
    def has_room(self) -> bool:
        """Whether one more request would get a place at once."""
        return self._scheduler.num_running + self._scheduler.num_waiting < self.config.max_running

    def accept(self, request: Request) -> Sequence:
        """Tokenise and check a request; any thread may. Raises InvalidRequest or PromptTooLong."""
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
        with self._lock:
            self._check_open()
            if sequence.request_id in self._sequences:
                raise InvalidRequest(f"request id {sequence.request_id!r} is in use", "request_id")
            try:
                self._scheduler.add(sequence.request_id, sequence.kv_bytes)
            except EngineOverloaded:
                self.stats.finished["rejected"] += 1
                raise
            self._sequences[sequence.request_id] = sequence
            self._count()

    def abort(self, request_id: str) -> None:
        """Stop a request at the next step, if it still runs; nothing more is said of it.

        Takes no lock: it may be called by the garbage collector, in the midst of anything.
        """
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.aborted = True

    def step(self) -> list[StepOutput]:
        """Schedule, run, and return what is new. A failure ends the request that met it, no other.

        Raises EngineClosed after `close`.
        """
        self._check_open()
        outputs = self._sweep()
        with self._lock:
            scheduled = [self._sequences[r] for r in self._scheduler.schedule().request_ids]
            self._count()
        for sequence in scheduled:
            try:
                piece = self._advance(sequence)
            except Exception as error:  # whatever happened, its client must hear of it and the others go on
                self._end(sequence, "error")
                outputs.append(StepOutput(sequence.request_id, error=_report(sequence.request_id, error)))
            except BaseException:  # ours is not to stop it; what this step did is done in part
                sequence.broken = True
                raise
            else:
                if piece is not None:
                    outputs.append(StepOutput(sequence.request_id, piece))
        return outputs

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

    def _advance(self, sequence: Sequence) -> RequestOutput | None:
        now = time.perf_counter()
        if sequence.first_step_s is None:
            sequence.first_step_s = now
            self.stats.queue_s.append(now - sequence.submitted_s)
            self.stats.prompt_tokens += len(sequence.prompt_token_ids)
        experts = self.stats.experts
        before = (experts.num_hits, experts.num_misses, experts.num_bytes, experts.stall_s)
        self._assembly.gating.begin(sequence.request_id)
        logits = self._runner.step(sequence)
        sequence.hits += experts.num_hits - before[0]
        sequence.misses += experts.num_misses - before[1]
        sequence.expert_bytes += experts.num_bytes - before[2]
        sequence.stall_s += experts.stall_s - before[3]
        return None if logits is None else self._say(sequence, sequence.sampler.sample(logits))

    def _say(self, sequence: Sequence, token: SampledToken) -> RequestOutput:
        self._time_token(sequence)
        text, reason = self._take(sequence, token.token_id)
        piece = RequestOutput(
            request_id=sequence.request_id,
            text=text,
            token_ids=(token.token_id,),
            logprobs=() if token.logprob is None else (self._logprob(token, token.logprob),),
            finish_reason=reason,
            usage=sequence.usage if reason else None,
        )
        if reason is not None:
            self._end(sequence, reason)
        return piece

    def _take(self, sequence: Sequence, token_id: int) -> tuple[str, FinishReason | None]:
        """The text that this token completes, and why the answer ends with it, if it does."""
        sequence.num_generated += 1
        sequence.pending.append(token_id)
        if token_id in self._eos and not sequence.params.ignore_eos:
            return sequence.text.finish().text, "stop"
        said = sequence.text.push(token_id)
        if said.stopped:
            return said.text, "stop"
        if sequence.num_generated < sequence.max_tokens:
            return said.text, None
        rest = sequence.text.finish()
        return said.text + rest.text, "stop" if rest.stopped else "length"

    def _logprob(self, token: SampledToken, logprob: float) -> TokenLogprob:
        top = tuple((i, token_text(self.tokenizer, i), p) for i, p in token.top)
        text = token_text(self.tokenizer, token.token_id)
        return TokenLogprob(token_id=token.token_id, text=text, logprob=logprob, top=top)

    def _time_token(self, sequence: Sequence) -> None:
        now = time.perf_counter()
        if sequence.last_token_s is None:
            self.stats.time_to_first_token_s.append(now - sequence.submitted_s)
        else:
            self.stats.inter_token_s.append(now - sequence.last_token_s)
        sequence.last_token_s = now
        self.stats.generation_tokens += 1

    def _sweep(self) -> list[StepOutput]:
        """End what was aborted, broken, or is out of time."""
        outputs = []
        now = time.perf_counter()
        with self._lock:
            sequences = list(self._sequences.values())
        for sequence in sequences:
            if sequence.aborted:
                self._end(sequence, "cancelled")
            elif sequence.broken:
                self._end(sequence, "error")
                error = GenerationFailed("the generation was interrupted in the midst of a step; ask again")
                outputs.append(StepOutput(sequence.request_id, error=error))
            elif sequence.deadline_s is not None and now >= sequence.deadline_s:
                self._end(sequence, "timeout")
                message = (
                    f"not finished after {now - sequence.submitted_s:.1f} s; allow more time or fewer tokens"
                )
                outputs.append(StepOutput(sequence.request_id, error=DeadlineExceeded(message)))
        return outputs

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.release()  # whoever asked for the answer may hold the sequence for long
        with self._lock:
            del self._sequences[sequence.request_id]
            self._scheduler.remove(sequence.request_id)
            self.stats.finished[reason] += 1
            self.stats.e2e_s.append(time.perf_counter() - sequence.submitted_s)
            self._count()

    def _count(self) -> None:
        self.stats.num_running = self._scheduler.num_running
        self.stats.num_waiting = self._scheduler.num_waiting


def _report(request_id: str, error: Exception) -> PgmoeError:
    """What the client is told; what is not the client's own doing is logged in full."""
    if isinstance(error, InvalidRequest | DeadlineExceeded):
        return error
    _logger.error("request %s failed", request_id, exc_info=error)
    if isinstance(error, PgmoeError):
        return error
    failed = GenerationFailed(f"the generation failed ({type(error).__name__}); the log has the details")
    failed.__cause__ = error
    return failed


def _model_info(config: EngineConfig, assembly: Assembly, runner: ModelRunner) -> ModelInfo:
    layers = assembly.loaded.layers
    return ModelInfo(
        name=config.name,
        architecture=type(assembly.loaded.model).__name__,
        device=str(assembly.device),
        dtype=str(assembly.dtype).removeprefix("torch."),
        num_moe_layers=len(layers),
        num_experts=max(layer.num_experts for layer in layers),
        top_k=max(layer.top_k for layer in layers),
        dense_bytes=assembly.loaded.loaded_bytes,
        expert_bytes=max(layer.layout.weight_bytes for layer in layers),
        num_slots=assembly.memory.num_slots,
        max_model_len=assembly.memory.longest,
        vocab_size=runner.vocab_size,
        is_encoder_decoder=runner.is_encoder_decoder,
    )
