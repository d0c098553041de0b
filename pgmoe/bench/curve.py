"""The headline measurement: how much of its speed an engine keeps when most experts do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pgmoe.bench.arms.base import Arm
from pgmoe.bench.compare import WARM_UP_TOKENS, Progress, Series, check_length, compare, part
from pgmoe.bench.curve_result import CurvePoint, CurveResult
from pgmoe.bench.disk_rate import own_rate
from pgmoe.bench.job import Job, Place
from pgmoe.bench.lines import PGMOE, Line
from pgmoe.bench.machine import describe_machine
from pgmoe.bench.page_cache import weight_files
from pgmoe.bench.result import current_commit, now
from pgmoe.bench.routed_stream import RoutedStream, record_stream
from pgmoe.bench.share import BESIDE_WEIGHTS, memory_need, slots_at, weight_bytes
from pgmoe.models.loader import ModelPlan, read_plan


@dataclass(frozen=True)
class Curve:
    """What to measure, before it is known on which machine."""

    name: str
    lines: tuple[Line, ...]
    """The first of each engine, if among `resident`, is what its lines are taken over."""
    resident: tuple[str, ...]
    """Engines measured with all experts resident in every round; the first stands in for those not here."""
    shares: tuple[float, ...]
    job: Job
    workload: str
    limited: bool = True
    """Whether every process gets a memory limit: what ours needs at its share."""
    link_bytes_per_s: float | None = None
    """Of an emulated link; None: the disk, whose rate is measured."""
    trace: Path | None = None
    """Where to write the routing for lines that replay it."""
    by_limit: bool = False
    """Whether the shares follow from round memory limits, and are drawn by these."""


def measure_curve(curve: Curve, place: Place, num_rounds: int, progress: Progress) -> CurveResult:
    """Measure. Takes minutes. Raises PgmoeError if an arm fails, ConfigError where no limit can be set."""
    check_length(curve.job)
    machine = describe_machine(weight_files(place.model))
    commit = current_commit()  # before: files may change while it runs
    plan = read_plan(place.model)
    progress("the stream's routing", 0, 1)
    stream = record_stream(place, curve.job)
    if curve.trace is not None:
        stream.repeated([WARM_UP_TOKENS, *[curve.job.num_tokens] * num_rounds]).save(curve.trace)
    points = []
    for number, share in enumerate(curve.shares):
        tell = part(progress, f"{share:g}%", number, len(curve.shares))
        points.append(_Block(curve, share, plan, stream).measure(place, num_rounds, tell))
    return CurveResult(
        name=curve.name,
        date=now(),
        machine=machine,
        commit=commit,
        conditions=_conditions(curve, place, num_rounds),
        points=tuple(points),
        engines={
            line.name: line.engine if line.engine in curve.resident else curve.resident[0]
            for line in curve.lines
        },
        weight_bytes=weight_bytes(plan),
        by_limit=curve.by_limit,
    )


class _Block:
    """One share: which arms, under which limits."""

    def __init__(self, curve: Curve, share: float, plan: ModelPlan, stream: RoutedStream) -> None:
        self._curve = curve
        self._share = share
        self._plan = plan
        self._stream = stream
        self._arms = {line.name: line.at(share, f"{line.name}, {share:g}%") for line in curve.lines}
        first = {line.engine: line for line in reversed(curve.lines)}
        self._references: dict[str, Arm] = {
            engine: self._arms[first[engine].name]
            if share == 100
            else first[engine].at(100, f"{first[engine].name}, 100%")
            for engine in curve.resident
        }

    def measure(self, place: Place, num_rounds: int, progress: Progress) -> CurvePoint:
        """All of them in turns."""
        arms = list(dict.fromkeys([*self._references.values(), *self._arms.values()]))
        limits = {arm.name: memory_need(self._plan, 100) for arm in self._references.values()}
        limits |= {arm.name: memory_need(self._plan, self._share) for arm in self._arms.values()}
        bandwidth: list[float] = []
        series = compare(
            arms,
            place,
            self._stream.job,
            num_rounds,
            progress,
            limits=limits if self._curve.limited else None,
            before_round=lambda: bandwidth.append(self._bandwidth(place)),
            may_fail=[arm.name for arm in self._peers() if arm not in self._references.values()],
        )
        found = {s.name: s for s in series}
        num_slots = slots_at(self._plan, self._share)
        return CurvePoint(
            share=self._share,
            num_slots=num_slots,
            limit_bytes=memory_need(self._plan, self._share) if self._curve.limited else None,
            series=tuple(_renamed(found, self._arms)),
            references=tuple(_renamed(found, self._references)),
            bandwidth=tuple(bandwidth),
            belady_bytes=self._stream.belady_bytes(num_slots),
        )

    def _peers(self) -> list[Arm]:
        """They may find too little memory in what ours needs."""
        return [self._arms[line.name] for line in self._curve.lines if line.engine != PGMOE]

    def _bandwidth(self, place: Place) -> float:
        if self._curve.link_bytes_per_s is not None:
            return self._curve.link_bytes_per_s
        return own_rate(place.model)


def _renamed(found: dict[str, Series], arms: dict[str, Arm]) -> Iterator[Series]:
    return (replace(found[arm.name], name=name) for name, arm in arms.items() if arm.name in found)


def _conditions(curve: Curve, place: Place, num_rounds: int) -> dict[str, str]:
    job = curve.job
    limits = (
        "every process in a control group whose limit counts memory and page cache: dense weights, slots, "
        f"and {BESIDE_WEIGHTS >> 20} MiB for libraries, KV cache and workspace; the same for all lines"
        if curve.limited
        else "none"
    )
    link = (
        "the disk; its rate is the best of plain direct reads of 1 and 4 MiB by 1, 2 and 4 threads, "
        "measured at the start of each round"
        if curve.link_bytes_per_s is None
        else f"emulated, {curve.link_bytes_per_s / 1e9:g} GB/s"
    )
    return {
        "workload": curve.workload,
        "length": (
            f"{len(job.prompt)} prompt tokens, {job.num_tokens} answer tokens fed to every line, batch 1; "
            "slow lines take fewer of the same; tokens/s are those after the first token"
        ),
        "order": (
            f"for each share {num_rounds} interleaved rounds after a warm-up, with one of all experts "
            "resident in each; every line is a process of its own; medians, smallest and largest; ratios are "
            "taken within a round; a peer without a row at a share could not run within its limit"
        ),
        "memory limit": limits,
        "link": link,
        "roofline": (
            "the slower of: all experts resident; the bytes that Belady's cache would miss per token, over "
            "the link's rate"
        ),
        "device": f"{place.device}; {place.num_threads} compute threads, OpenMP: {place.openmp}",
    }
