"""Several sequences in one pass: what that changes for experts that are not all in memory.

The model decodes them together; the engine's own scheduler, which takes one sequence at a time, has no part
in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.batches_result import RESIDENT, BatchesResult, BatchPoint
from pgmoe.bench.compare import Progress, check_distinct, check_length, compare, part
from pgmoe.bench.curves import ORACLE, Options
from pgmoe.bench.job import Job, Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import current_commit, now
from pgmoe.errors import ConfigError
from pgmoe.models.loader import read_plan
from pgmoe.models.tokenizer import load_tokenizer

PROMPT_TOKENS = 32
"""Of each sequence."""


@dataclass(frozen=True)
class BatchPlan:
    """What to measure, before it is known on which machine."""

    name: str
    batches: tuple[int, ...]
    share: float
    """Per cent of the experts in memory."""
    gatings: tuple[str, ...]
    options: Options
    """Of EngineConfig, for all."""
    jobs: tuple[Job, ...]
    """One for each batch size."""


def measure_batches(wanted: BatchPlan, place: Place, num_rounds: int, progress: Progress) -> BatchesResult:
    """Measure. Takes minutes. Raises PgmoeError if an arm fails, ConfigError for what cannot be measured."""
    for job in wanted.jobs:
        check_length(job)
    arms = _arms(wanted)
    machine = describe_machine(weight_files(place.model))
    commit = current_commit()  # before: files may change while it runs
    points = []
    for number, (batch, job) in enumerate(zip(wanted.batches, wanted.jobs, strict=True)):
        tell = part(progress, f"batch {batch}", number, len(wanted.batches))
        points.append(BatchPoint(batch, compare(arms, place, job, num_rounds, tell)))
    return BatchesResult(
        name=wanted.name,
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(wanted, place, num_rounds),
        share=wanted.share,
        batches=tuple(points),
    )


def batch_jobs(
    model: str, documents: Iterable[str], batches: Sequence[int], num_tokens: int
) -> tuple[Job, ...]:
    """For each batch size as many beginnings of documents, fed to every arm; too short ones are left out.

    Raises ConfigError for a model that encodes and decodes or has no tokenizer, for a batch size that is
    named twice, and if there are too few documents.
    """
    check_distinct("batch size", batches)
    if read_plan(model).config.is_encoder_decoder:
        raise ConfigError(f"{model} is an encoder-decoder model; batches are measured of decoders")
    tokenizer = load_tokenizer(Path(model))
    if tokenizer is None:
        raise ConfigError(f"{model} has no tokenizer; copy its files there")
    length, most = PROMPT_TOKENS + num_tokens, max(batches)
    encoded = (tuple(tokenizer(document)["input_ids"][:length]) for document in documents)
    rows = list(islice((row for row in encoded if len(row) == length), most))
    if len(rows) < most:
        raise ConfigError(
            f"a batch of {most} needs as many documents of {length} tokens or more, the text has "
            f"{len(rows)}; give more of them, or ask for fewer tokens"
        )
    first, *beside = rows
    prompt, forced = first[:PROMPT_TOKENS], first[PROMPT_TOKENS:]
    return tuple(Job(prompt, num_tokens, forced, tuple(beside[: size - 1])) for size in batches)


def check_gatings(gatings: Sequence[str]) -> None:
    """Raise ConfigError if one is named twice, or replays a trace, which is of single sequences."""
    check_distinct("gating", gatings)
    if ORACLE in gatings:
        raise ConfigError(f"gating {ORACLE!r} replays the routing of a single sequence; choose another")


def _arms(wanted: BatchPlan) -> list[EngineArm]:
    """All resident, then a share of them with each gating."""
    shared = [
        EngineArm(gating, f"{wanted.share:g}%", options=(*wanted.options, ("gating", gating)))
        for gating in wanted.gatings
    ]
    return [EngineArm(RESIDENT, options=wanted.options), *shared]


def _conditions(wanted: BatchPlan, place: Place, num_rounds: int) -> dict[str, str]:
    options = ", ".join(f"{name}={value}" for name, value in wanted.options)
    return {
        "workload": (
            f"beginnings of different documents, {PROMPT_TOKENS} tokens of each in one pass, then "
            f"{wanted.jobs[0].num_tokens - 1} passes of a token of each, the documents' own, fed to every "
            "arm; all by the engine's model, not by its scheduler, which takes one sequence at a time"
        ),
        "order": (
            f"for each batch size {num_rounds} interleaved rounds after a warm-up; every arm is a process of "
            "its own, idle while another is measured; medians, smallest and largest; ratios are taken within "
            "a round; speeds, hits, bytes and waiting are those after the first token of each sequence"
        ),
        "memory limit": "none",
        "page cache": "the checkpoint's files are dropped from it before every measurement",
        "options": options or "none but the gating",
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }
