"""Where a decoded token's time goes, with several shares of the experts in memory."""

from __future__ import annotations

from dataclasses import dataclass

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.profiled import ProfiledArm
from pgmoe.bench.compare import Progress, check_distinct, check_length, compare
from pgmoe.bench.curves import Options
from pgmoe.bench.disk_rate import own_rate
from pgmoe.bench.job import Job, Place
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.profile_result import ProfiledSeries, ProfileResult
from pgmoe.bench.result import current_commit, now
from pgmoe.bench.routed_stream import record_stream
from pgmoe.bench.share import slots_at
from pgmoe.models.loader import read_plan


@dataclass(frozen=True)
class ProfilePlan:
    """What to measure, before it is known on which machine."""

    name: str
    shares: tuple[float, ...]
    """Per cent of the experts' bytes in memory."""
    gatings: tuple[str, ...]
    """Measured at every share; with all experts in memory, where nothing is to be guessed, only the first."""
    options: Options
    """Of EngineConfig, for all."""
    job: Job
    workload: str


def measure_profile(wanted: ProfilePlan, place: Place, num_rounds: int, progress: Progress) -> ProfileResult:
    """Measure. Takes minutes. Raises PgmoeError if an arm fails, ConfigError for what cannot be measured."""
    check_length(wanted.job)
    arms = _arms(wanted)
    served = str(dict(wanted.options).get("model", place.model))
    machine = describe_machine(weight_files(served))
    commit = current_commit()  # before: files may change while it runs
    plan = read_plan(served)
    progress("the stream's routing", 0, 1)
    stream = record_stream(place, wanted.job)
    rates: list[float] = []
    measured = compare(
        [ProfiledArm(arm) for _, arm in arms],
        place,
        stream.job,
        num_rounds,
        progress,
        before_round=lambda: rates.append(own_rate(served)),
    )
    slots = {share: slots_at(plan, share) for share, _ in arms}
    least = {share: stream.belady_bytes(number) for share, number in slots.items()}
    return ProfileResult(
        name=wanted.name,
        date=now(),
        commit=commit,
        machine=machine,
        conditions=_conditions(wanted, place, num_rounds),
        disk_bytes_per_s=tuple(rates),
        profiled=tuple(
            ProfiledSeries(share, slots[share], least[share], series)
            for (share, _), series in zip(arms, measured, strict=True)
        ),
    )


def _arms(wanted: ProfilePlan) -> list[tuple[float, EngineArm]]:
    """Shares and arms. Raises ConfigError if one is named twice."""
    arms = []
    for share in wanted.shares:
        for gating in wanted.gatings[:1] if share == 100 else wanted.gatings:
            name = "100%" if share == 100 else f"{share:g}%, {gating}"
            options = (*wanted.options, ("gating", gating))
            arms.append((share, EngineArm(name, f"{share:g}%", options=options)))
    check_distinct("share and gating", [arm.name for _, arm in arms])
    return arms


def _conditions(wanted: ProfilePlan, place: Place, num_rounds: int) -> dict[str, str]:
    job = wanted.job
    options = ", ".join(f"{name}={value}" for name, value in wanted.options if name != "model")
    return {
        "workload": wanted.workload,
        "length": (
            f"{len(job.prompt)} prompt tokens, {job.num_tokens} answer tokens fed to every arm, batch 1; "
            "everything is counted after the first token"
        ),
        "order": (
            f"{num_rounds} interleaved rounds after a warm-up; every arm is a process of its own, idle while "
            "another is measured; medians, smallest and largest; in each round an arm does the job with "
            "timers and without, in alternating order"
        ),
        "parts": (
            "wall-clock time of the computing thread, in which each moment belongs to one part; torch's "
            "threads spin for a while where they wait for work, which is CPU time of the computing threads"
        ),
        "timers": (
            "their own time is their calls times what an empty one takes; the answer with them over the "
            "same one without has all of a short run's noise"
        ),
        "least of the link": (
            "the bytes read, or those that Belady's cache of as many slots would miss, over the disk's rate: "
            "the best of plain direct reads of 1 and 4 MiB by 1, 2 and 4 threads, at each round's start"
        ),
        "memory limit": "none",
        "options": options or "none but the gating",
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }
