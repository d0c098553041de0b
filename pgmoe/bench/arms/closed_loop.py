"""Streams whose next request follows the last answer: what is sent when, and when each token came.

For every arm alike, also for one in another interpreter: only the standard library is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pgmoe.bench.streams import NO_STEPS, Answered, Ask, Steps, StreamsAnswer, StreamsJob


@dataclass(frozen=True)
class Sent:
    """A request on its way."""

    key: str
    """Its name, which no other request of the loop has."""
    ask: Ask


@dataclass
class _Open:
    sent_s: float
    tokens: list[int] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)


class ClosedLoop:
    """Started by making it. Not safe for threads."""

    def __init__(self, job: StreamsJob, clock: Callable[[], float] = time.perf_counter) -> None:
        self._job = job
        self._clock = clock
        self._open: dict[tuple[int, int], _Open] = {}
        self._num_unanswered = sum(1 for _ in job.asks)
        self._begin_s = self._last_s = clock()

    @property
    def is_done(self) -> bool:
        """Whether all requests are answered."""
        return self._num_unanswered == 0

    def begin(self) -> list[Sent]:
        """The first request of every stream, to be sent now."""
        return [self._send(stream, 0) for stream in range(len(self._job.streams))]

    def take(self, key: str, tokens: Sequence[int], at_s: Iterable[float] | None = None) -> Sent | None:
        """Tokens of this request have come, now or at these times; its stream's next request, if that is due.

        Raises ValueError if there are more than were asked for.
        """
        if not tokens:
            return None
        stream, number = map(int, key.split("-"))
        open_, ask = self._open[stream, number], self._job.streams[stream][number]
        times = [self._clock()] * len(tokens) if at_s is None else list(at_s)
        open_.tokens += tokens
        open_.arrivals_s += [t - open_.sent_s for t in times]
        if len(open_.tokens) > ask.num_tokens or len(times) != len(tokens):
            raise ValueError(f"{len(open_.tokens)} tokens at {len(times)} times, asked for {ask.num_tokens}")
        self._last_s = max(self._last_s, *times)
        if len(open_.tokens) < ask.num_tokens:
            return None
        self._num_unanswered -= 1
        is_last = number + 1 == len(self._job.streams[stream])
        return None if is_last else self._send(stream, number + 1)

    def answer(
        self, steps: Steps = NO_STEPS, link_bytes_per_s: float = 0.0, layers: int = 0
    ) -> StreamsAnswer:
        """What came of all, once that is done; see StreamsAnswer for the rest."""
        assert self.is_done
        answers = tuple(
            Answered(tuple(open_.tokens), tuple(open_.arrivals_s)) for _, open_ in sorted(self._open.items())
        )
        return StreamsAnswer(self._last_s - self._begin_s, answers, steps, link_bytes_per_s, layers)

    def _send(self, stream: int, number: int) -> Sent:
        self._open[stream, number] = _Open(self._clock())
        return Sent(f"{stream}-{number}", self._job.streams[stream][number])
