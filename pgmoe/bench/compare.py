"""Several arms on one checkpoint, measured in turns: A B C, A B C, ..."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic

from pgmoe.bench.arms.base import AnswerT, AnyArm, Arm, TaskT
from pgmoe.bench.job import Answer, Job, Load, Measured, Place
from pgmoe.bench.worker import Worker
from pgmoe.errors import ConfigError, PgmoeError

WARM_UP_TOKENS = 8

Progress = Callable[[str, int, int], None]
"""Called with (what is done now, steps done, steps in all)."""


def check_length(job: Job) -> None:
    """Raise ConfigError for an answer that is over with the warm-up."""
    if job.num_tokens <= WARM_UP_TOKENS:
        raise ConfigError(f"tokens must be more than {WARM_UP_TOKENS}, got {job.num_tokens}")


def check_distinct(what: str, names: Sequence[object]) -> None:
    """Raise ConfigError if one is named twice; `what` one of them is."""
    if len(set(names)) < len(names):
        raise ConfigError(f"every {what} can be named once, got {', '.join(map(str, names))}")


def part(progress: Progress, name: str, number: int, count: int) -> Progress:
    """For one of `count` parts of equal length, the so many-th from 0: tells of the whole."""

    def tell(what: str, done: int, total: int) -> None:
        progress(f"{name}: {what}", number * total + done, count * total)

    return tell


@dataclass(frozen=True)
class Series:
    """All that was measured of one arm."""

    name: str
    loads: tuple[Load, ...]
    """Cold starts, each of a fresh process while no other arm was loaded."""
    rounds: tuple[Measured[Answer], ...]

    @property
    def speeds(self) -> list[float]:
        """Decode tokens/s of each round."""
        return [m.answer.tokens_per_s for m in self.rounds]


def compare(
    arms: Sequence[Arm],
    place: Place,
    job: Job,
    num_rounds: int,
    progress: Progress,
    cold_starts: Mapping[str, int] | None = None,
    limits: Mapping[str, int] | None = None,
    before_round: Callable[[], None] = lambda: None,
    may_fail: Collection[str] = (),
) -> tuple[Series, ...]:
    """Load every arm in its own process, warm each up, and give each the job once a round.

    All stay loaded and idle while another one works, so a change of the machine's speed during the run
    meets all alike. Before that, arms named in `cold_starts` are loaded so many times alone: what one process
    has mapped of the checkpoint's files cannot be dropped from the page cache for the next.
    `limits` are bytes of memory by arm; where one is named it counts in all its processes. `before_round` is
    called at the start of each. An arm of `may_fail` that fails leaves the run and has no series; any other's
    failure raises PgmoeError.
    """
    num_loads = dict(cold_starts or {})
    steps = _Steps(progress, total=sum(num_loads.values()) + len(arms) * (2 + num_rounds))
    run: _Run[Job, Answer] = _Run(place, job, dict(limits or {}), frozenset(may_fail), steps)
    loads = {arm.name: run.cold_starts(arm, num_loads.get(arm.name, 0)) for arm in arms}
    found = run.turns(arms, num_rounds, before_round)
    return tuple(Series(name, loads[name], tuple(rounds)) for name, rounds in found.items())


def take_turns(
    arms: Sequence[AnyArm[TaskT, AnswerT]],
    place: Place,
    job: TaskT,
    num_rounds: int,
    progress: Progress,
    may_fail: Collection[str] = (),
) -> dict[str, list[Measured[AnswerT]]]:
    """As `compare`, for arms of any kind: what each did in each round, by name."""
    steps = _Steps(progress, total=len(arms) * (2 + num_rounds))
    run: _Run[TaskT, AnswerT] = _Run(place, job, {}, frozenset(may_fail), steps)
    return run.turns(arms, num_rounds)


class _Run(ExitStack, Generic[TaskT, AnswerT]):
    """The arms that are loaded, until it is left."""

    def __init__(
        self, place: Place, job: TaskT, limits: Mapping[str, int], may_fail: frozenset[str], steps: _Steps
    ) -> None:
        super().__init__()
        self._rounds: dict[str, list[Measured[AnswerT]]] = {}
        """Of the arms that have not failed, in the order of loading."""
        self._workers: dict[str, Worker[TaskT, AnswerT]] = {}
        self._place = place
        self._job = job
        self._limits = limits
        self._may_fail = may_fail
        self._steps = steps

    def turns(
        self,
        arms: Sequence[AnyArm[TaskT, AnswerT]],
        num_rounds: int,
        before_round: Callable[[], None] = lambda: None,
    ) -> dict[str, list[Measured[AnswerT]]]:
        """Load all, let each work once a round, end them."""
        with self:
            for arm in arms:
                self._load(arm)
            for number in range(num_rounds):
                before_round()
                self._round(f"round {number + 1}")
        self._steps.begin("done")
        return self._rounds

    def cold_starts(self, arm: AnyArm[TaskT, AnswerT], number: int) -> tuple[Load, ...]:
        """Load the arm so many times alone."""
        found = []
        for _ in range(number):
            self._steps.begin(f"cold start of {arm.name}")
            with self._start(arm) as worker:
                found.append(worker.loaded())
        return tuple(found)

    def _load(self, arm: AnyArm[TaskT, AnswerT]) -> None:
        """Load it to stay, and warm it up."""
        worker = self._workers[arm.name] = self.enter_context(self._start(arm))
        self._rounds[arm.name] = []
        with self._leaving(arm.name):
            self._steps.begin(f"loading {arm.name}")
            worker.loaded()
            self._steps.begin(f"warming up {arm.name}")
            worker.measure(self._job.first(WARM_UP_TOKENS))

    def _round(self, what: str) -> None:
        """Everyone once."""
        for name in list(self._rounds):
            self._steps.begin(f"{what}: {name}")
            with self._leaving(name):
                self._rounds[name].append(self._workers[name].measure(self._job))

    def _start(self, arm: AnyArm[TaskT, AnswerT]) -> Worker[TaskT, AnswerT]:
        return Worker(arm, self._place, self._limits.get(arm.name))

    @contextmanager
    def _leaving(self, name: str) -> Iterator[None]:
        try:
            yield
        except PgmoeError as error:
            if name not in self._may_fail:
                raise
            self._steps.begin(f"{name} failed and is left out: {str(error).splitlines()[0]}")
            del self._rounds[name]


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = -1

    def begin(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, self._total)
