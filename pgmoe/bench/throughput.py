"""Many streams at once: tokens per second of ours and of others, and how long each stream waits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pgmoe.bench.arms.base import AnyArm
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.engine_streams import EngineStreamsArm
from pgmoe.bench.arms.llama_cpp_streams import LlamaCppStreamsArm
from pgmoe.bench.arms.transformers_streams import TransformersStreamsArm
from pgmoe.bench.arms.vllm_streams import VllmStreamsArm
from pgmoe.bench.compare import WARM_UP_TOKENS, Progress, check_distinct, part, take_turns
from pgmoe.bench.curves import Options
from pgmoe.bench.job import Measured, Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import current_commit, now
from pgmoe.bench.streams import StreamsAnswer, StreamsJob
from pgmoe.bench.throughput_result import StreamsPoint, StreamsRound, StreamsSeries, ThroughputResult
from pgmoe.errors import ConfigError
from pgmoe.models.loader import read_plan
from pgmoe.models.tokenizer import load_tokenizer

StreamsArm = AnyArm[StreamsJob, StreamsAnswer]
RESIDENT = 100.0


@dataclass(frozen=True)
class Peers:
    """Other engines beside ours, and with what."""

    transformers: bool = True
    gguf: str | None = None
    """For llama.cpp; None: without it."""
    vllm_python: str | None = None
    """For vLLM; None: without it."""
    model: str | None = None
    """Checkpoint folder, if they do not compute ours."""


@dataclass(frozen=True)
class ThroughputPlan:
    """What to measure, before it is known on which machine."""

    name: str
    shares: tuple[float, ...]
    """Per cent of the experts in memory, below 100, at which ours is measured beside all resident."""
    options: Options
    """Of EngineConfig, for all of ours."""
    emulated: bool
    """Whether they name an emulated link."""
    peers: Peers
    jobs: tuple[StreamsJob, ...]
    """One for each number of streams."""
    workload: str


def measure_throughput(
    wanted: ThroughputPlan, place: Place, num_rounds: int, progress: Progress
) -> ThroughputResult:
    """Measure. Takes minutes. A peer that fails is left out; raises PgmoeError if ours does."""
    machine = describe_machine(weight_files(place.model))
    commit = current_commit()  # before: files may change while it runs
    points = []
    for number, job in enumerate(wanted.jobs):
        tell = part(progress, f"{len(job.streams)} streams", number, len(wanted.jobs))
        points.append(_point(wanted, job, place, num_rounds, tell))
    return ThroughputResult(
        name=wanted.name,
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(wanted, place, num_rounds),
        by_streams=tuple(points),
        emulated=wanted.emulated,
    )


def streams_jobs(
    prompts: Sequence[Sequence[int]], streams: Sequence[int], num_requests: int, num_tokens: int, vary: float
) -> tuple[StreamsJob, ...]:
    """For each number of streams a job of so many requests a stream; see StreamsJob.of.

    Raises ConfigError for a number that is named twice, and for answers that may be over with the warm-up.
    """
    check_distinct("number of streams", streams)
    shortest = num_tokens * (1 - vary / 100)
    if shortest <= 1:
        raise ConfigError(f"tokens {num_tokens} and vary {vary:g}: answers must have 2 tokens or more")
    return tuple(
        StreamsJob.of(prompts[: number * num_requests], number, num_tokens, vary) for number in streams
    )


def random_prompts(model: str, count: int, length: int) -> list[list[int]]:
    """Uniformly drawn tokens, the same ones each time. Raises ConfigError for an encoder-decoder."""
    config = read_plan(model).config
    if config.is_encoder_decoder:
        raise ConfigError(f"{model} is an encoder-decoder model; streams are measured of decoders")
    draw, size = random.Random(0), config.get_text_config().vocab_size
    return [[draw.randrange(size) for _ in range(length)] for _ in range(count)]


def text_prompts(model: str, documents: Iterable[str], count: int, length: int) -> list[list[int]]:
    """Beginnings of documents; those that are too short are left out. Raises ConfigError for too few."""
    tokenizer = load_tokenizer(Path(model))
    if tokenizer is None:
        raise ConfigError(f"{model} has no tokenizer; copy its files there, or measure without a text")
    encoded = (list(tokenizer(document)["input_ids"][:length]) for document in documents)
    found = list(islice((row for row in encoded if len(row) == length), count))
    if len(found) < count:
        raise ConfigError(
            f"{count} requests need as many documents of {length} tokens or more, the text has {len(found)}; "
            "give more of them, or ask for fewer streams or requests"
        )
    return found


def _point(
    wanted: ThroughputPlan, job: StreamsJob, place: Place, num_rounds: int, progress: Progress
) -> StreamsPoint:
    ours, others = _ours(wanted, job), _others(wanted.peers, job)
    arms = [*ours.values(), *others]
    measured = take_turns(arms, place, job, num_rounds, progress, may_fail=[arm.name for arm in others])
    shares = {arm.name: share for share, arm in ours.items()}
    expected = measured[ours[RESIDENT].name][0].answer
    return StreamsPoint(
        num_streams=len(job.streams),
        num_requests=sum(1 for _ in job.asks),
        series=tuple(_series(name, shares.get(name), rounds, expected) for name, rounds in measured.items()),
    )


def _series(
    name: str, share: float | None, rounds: Sequence[Measured[StreamsAnswer]], expected: StreamsAnswer
) -> StreamsSeries:
    return StreamsSeries(name, share, tuple(StreamsRound.of(one, expected) for one in rounds))


def _ours(wanted: ThroughputPlan, job: StreamsJob) -> dict[float, StreamsArm]:
    """By share, all resident first."""
    options: Options = (
        ("max_running", len(job.streams)),
        ("max_model_len", job.longest),
        ("prefix_cache", False),
        *wanted.options,
    )
    shares = dict.fromkeys((RESIDENT, *wanted.shares))
    return {s: EngineStreamsArm(EngineArm(f"pgmoe, {s:g}%", f"{s:g}%", options=options)) for s in shares}


def _others(peers: Peers, job: StreamsJob) -> list[StreamsArm]:
    number, longest = len(job.streams), job.longest
    found: list[StreamsArm] = []
    if peers.transformers:
        found.append(TransformersStreamsArm(number, longest, peers.model))
    if peers.gguf is not None:
        found.append(LlamaCppStreamsArm(peers.gguf, number, longest))
    if peers.vllm_python is not None:
        found.append(VllmStreamsArm(peers.vllm_python, number, longest, peers.model))
    return found


def _conditions(wanted: ThroughputPlan, place: Place, num_rounds: int) -> dict[str, str]:
    options = ", ".join(f"{name}={value}" for name, value in wanted.options)
    model = wanted.peers.model
    beside = (
        "" if model is None else f"; they compute {Path(model).name}, its twin that routes conventionally"
    )
    return {
        "workload": wanted.workload,
        "order": (
            f"for each number of streams {num_rounds} interleaved rounds after a warm-up of {WARM_UP_TOKENS} "
            "tokens a stream; every arm is a process of its own, idle while another is measured; medians, "
            "smallest and largest; ratios are taken within a round"
        ),
        "speed": "answer tokens over the time from the first request to the last token, prompts included",
        "roofline": (
            "for every step the slower of: a step of all resident that brings as many tokens in the same "
            "round; the bytes of the experts that it used and that its own cache policy did not have there, "
            "over the link's rate as the engine measured it at its start; the sum over the time of the run"
        ),
        "other engines": f"all weights in memory, no prefix cache, as many threads{beside}",
        "memory limit": "none",
        "page cache": "the checkpoint's files are dropped from it before every measurement",
        "options": options or "none but places for all streams, their length, and no prefix cache",
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }
