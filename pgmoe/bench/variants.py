"""Our engine with different options, given the same requests in turns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.engine_streams import EngineStreamsArm
from pgmoe.bench.compare import WARM_UP_TOKENS, Progress, take_turns
from pgmoe.bench.curves import Options
from pgmoe.bench.job import Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import current_commit, now
from pgmoe.bench.streams import StreamsJob
from pgmoe.bench.throughput import random_prompts, text_prompts
from pgmoe.bench.variants_result import Variant, VariantRound, VariantsResult
from pgmoe.errors import ConfigError


@dataclass(frozen=True)
class VariantsPlan:
    """What to measure, before it is known on which machine."""

    name: str
    device_memory: str
    variants: dict[str, Options]
    """Options of EngineConfig that set one apart, by name; the first is what others are compared to."""
    options: Options
    """Of all."""
    job: StreamsJob
    workload: str


def measure_variants(
    wanted: VariantsPlan, place: Place, num_rounds: int, progress: Progress
) -> VariantsResult:
    """Measure. Takes minutes. Raises PgmoeError if an engine does."""
    machine, commit = describe_machine(weight_files(place.model)), current_commit()
    arms = [_arm(wanted, name) for name in wanted.variants]
    measured = take_turns(arms, place, wanted.job, num_rounds, progress)
    expected = measured[arms[0].name][0].answer
    variants = tuple(
        Variant(name, tuple(VariantRound.of(one, wanted.job, expected) for one in rounds))
        for name, rounds in measured.items()
    )
    return VariantsResult(
        name=wanted.name,
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(wanted, place, num_rounds),
        num_streams=len(wanted.job.streams),
        num_requests=sum(1 for _ in wanted.job.asks),
        variants=variants,
    )


def shared_prompts(
    model: str, num_streams: int, num_requests: int, length: int, num_shared: int
) -> list[list[int]]:
    """Uniformly drawn tokens, stream by stream; a stream's prompts have their first `num_shared` in common.

    Raises ConfigError if nothing would be left of a prompt.
    """
    if num_shared >= length:
        raise ConfigError(f"shared {num_shared} must be less than the {length} tokens of a prompt")
    prompts = random_prompts(model, num_streams * num_requests, length)
    firsts = (prompts[n - n % num_requests] for n in range(len(prompts)))
    return [first[:num_shared] + own[num_shared:] for first, own in zip(firsts, prompts, strict=True)]


def topic_prompts(
    model: str, topics: Sequence[Sequence[str]], num_streams: int, num_requests: int, length: int
) -> list[list[int]]:
    """Beginnings of documents, stream by stream; streams take turns at the topics, each draws its documents
    from one. Raises ConfigError as `text_prompts`."""
    streams: list[list[list[int]]] = []
    taken = []
    for number, documents in enumerate(topics):
        count = len(range(number, num_streams, len(topics))) * num_requests
        shuffled = random.Random(0).sample(list(documents), len(documents))
        taken.append(iter(text_prompts(model, shuffled, count, length)))
    for stream in range(num_streams):
        topic = taken[stream % len(topics)]
        streams.append([next(topic) for _ in range(num_requests)])
    return [prompt for stream in streams for prompt in stream]


def _arm(wanted: VariantsPlan, name: str) -> EngineStreamsArm:
    options: Options = (
        ("max_running", len(wanted.job.streams)),
        ("max_waiting", len(wanted.job.streams)),
        ("max_model_len", wanted.job.longest),
        *wanted.options,
        *wanted.variants[name],
    )
    share = wanted.device_memory
    own = dict(options)
    return EngineStreamsArm(EngineArm(name, str(own.pop("device_memory", share)), options=tuple(own.items())))


def _conditions(wanted: VariantsPlan, place: Place, num_rounds: int) -> dict[str, str]:
    options = ", ".join(f"{name}={value}" for name, value in wanted.options)
    return {
        "workload": wanted.workload,
        "order": (
            f"{num_rounds} interleaved rounds after a warm-up of {WARM_UP_TOKENS} tokens a stream; every "
            "engine is a process of its own, idle while another is measured, and keeps experts and what it "
            "learned, of these very prompts too, from round to round, but no prefixes; medians, smallest and "
            "largest; ratios are taken within a round"
        ),
        "experts in memory": wanted.device_memory,
        "options of all": options or "none but places for all streams, and their length",
        "page cache": "the checkpoint's files are dropped from it before every measurement",
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }
