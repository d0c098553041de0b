"""Several arms on one checkpoint, measured in turns: A B C, A B C, ..."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pgmoe.bench.arms.base import Arm
from pgmoe.bench.job import Job, Load, Measured, Place
from pgmoe.bench.worker import Worker
from pgmoe.errors import PgmoeError

WARM_UP_TOKENS = 8

Progress = Callable[[str, int, int], None]
"""Called with (what is done now, steps done, steps in all)."""


@dataclass(frozen=True)
class Series:
    """All that was measured of one arm."""

    name: str
    loads: tuple[Load, ...]
    """Cold starts, each of a fresh process while no other arm was loaded."""
    rounds: tuple[Measured, ...]

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
    limit_of = dict(limits or {})
    num_loads = dict(cold_starts or {})
    steps = _Steps(progress, total=sum(num_loads.values()) + len(arms) * (2 + num_rounds))
    loads: dict[str, list[Load]] = {arm.name: [] for arm in arms}
    rounds: dict[str, list[Measured]] = {arm.name: [] for arm in arms}
    for arm in arms:
        for _ in range(num_loads.get(arm.name, 0)):
            steps.begin(f"cold start of {arm.name}")
            with Worker(arm, place, limit_of.get(arm.name)) as worker:
                loads[arm.name].append(worker.loaded())
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        @contextmanager
        def leaving(arm: Arm) -> Iterator[None]:
            try:
                yield
            except PgmoeError:
                if arm.name not in may_fail:
                    raise
                steps.begin(f"{arm.name} failed and is left out")
                del workers[arm.name]

        for arm in arms:
            workers[arm.name] = worker = stack.enter_context(Worker(arm, place, limit_of.get(arm.name)))
            with leaving(arm):
                steps.begin(f"loading {arm.name}")
                worker.loaded()
                steps.begin(f"warming up {arm.name}")
                worker.measure(job.first(WARM_UP_TOKENS))
        for number in range(num_rounds):
            before_round()
            for worker in list(workers.values()):
                steps.begin(f"round {number + 1}: {worker.arm.name}")
                with leaving(worker.arm):
                    rounds[worker.arm.name].append(worker.measure(job))
    steps.begin("done")
    left = [arm for arm in arms if arm.name in workers]
    return tuple(Series(a.name, tuple(loads[a.name]), tuple(rounds[a.name])) for a in left)


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = -1

    def begin(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, self._total)
