"""From a benchmark to its result."""

from __future__ import annotations

from collections.abc import Sequence

from pgmoe.bench.benchmarks import Benchmark
from pgmoe.bench.compare import Progress, check_distinct, check_length, compare
from pgmoe.bench.job import Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import Result, current_commit, now
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.tokenizer import load_tokenizer


def run_benchmark(benchmark: Benchmark, place: Place, num_rounds: int, progress: Progress) -> Result:
    """Measure. Takes minutes. Raises PgmoeError if an arm fails."""
    _check(benchmark)
    machine = describe_machine(weight_files(place.model))
    commit = current_commit()  # before: files may change while it runs
    series = compare(benchmark.arms, place, benchmark.job, num_rounds, progress, benchmark.cold_starts)
    return Result(
        name=benchmark.name,
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(benchmark, place, num_rounds),
        pairs=benchmark.pairs,
        series=series,
        texts=_texts(benchmark, place, [s.rounds[0].answer.tokens for s in series]),
    )


def _check(benchmark: Benchmark) -> None:
    check_distinct("arm", [arm.name for arm in benchmark.arms])
    check_length(benchmark.job)


def _conditions(benchmark: Benchmark, place: Place, num_rounds: int) -> dict[str, str]:
    job = benchmark.job
    return {
        "workload": benchmark.workload,
        "length": (
            f"{len(job.prompt)} prompt tokens, {job.num_tokens} answer tokens, batch 1, end tokens ignored; "
            "tokens/s, hits, bytes and waiting are those after the first token"
        ),
        "order": (
            f"{num_rounds} interleaved rounds after a warm-up; every arm is a process of its own, idle while "
            "another is measured; medians, smallest and largest in brackets; ratios are taken within a round"
        ),
        "page cache": (
            "before every load and measurement the checkpoint's files (and those that accelerate wrote) are "
            "dropped from it with posix_fadvise(DONTNEED)"
        ),
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }


def _texts(benchmark: Benchmark, place: Place, answers: Sequence[tuple[int, ...]]) -> tuple[str, ...] | None:
    tokenizer = load_tokenizer(Checkpoint.open(place.model).folder)
    if benchmark.job.forced is not None or tokenizer is None:
        return None
    return tuple(str(tokenizer.decode(list(tokens))) for tokens in answers)
