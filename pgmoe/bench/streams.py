"""Many requests at once as plain data: what an arm is given, and what comes back.

Nothing but the standard library is imported: a peer's interpreter, which has nothing of ours, reads it too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """One request. Decoded greedily; end-of-sequence tokens do not end the answer."""

    prompt: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class StreamsJob:
    """Streams side by side, each of which sends its next request when its last one is answered."""

    streams: tuple[tuple[Ask, ...], ...]

    @property
    def asks(self) -> Iterator[Ask]:
        """All of them, stream by stream."""
        return (ask for stream in self.streams for ask in stream)

    @property
    def num_tokens(self) -> int:
        """Of all answers."""
        return sum(ask.num_tokens for ask in self.asks)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        return max(len(ask.prompt) + ask.num_tokens for ask in self.asks)

    def first(self, num_tokens: int) -> StreamsJob:
        """The first request of each stream, with so many answer tokens at most."""
        heads = (stream[0] for stream in self.streams)
        return StreamsJob(tuple((Ask(a.prompt, min(num_tokens, a.num_tokens)),) for a in heads))

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        num_streams: int,
        num_tokens: int,
        vary: float,
        seed: int = 0,
    ) -> StreamsJob:
        """Streams of equally many requests, one for each prompt, with answers of about `num_tokens`.

        Each answer's length is drawn uniformly from `vary` per cent below to as much above it: so not all
        streams begin and end together.
        """
        assert len(prompts) % num_streams == 0, (len(prompts), num_streams)
        draw = random.Random(seed)
        low, high = num_tokens * (1 - vary / 100), num_tokens * (1 + vary / 100)
        asks = [Ask(tuple(prompt), max(1, round(draw.uniform(low, high)))) for prompt in prompts]
        each = len(prompts) // num_streams
        return cls(tuple(tuple(asks[n * each : (n + 1) * each]) for n in range(num_streams)))


@dataclass(frozen=True)
class Answered:
    """What became of one request."""

    tokens: tuple[int, ...]
    arrivals_s: tuple[float, ...]
    """Of each token, after the request was sent."""

    @property
    def gaps_s(self) -> list[float]:
        """From each token to the next."""
        return [later - earlier for earlier, later in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass(frozen=True)
class Steps:
    """An engine's steps one after another, in columns of equal length."""

    seconds: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()
    """Answer tokens that the step brought."""
    num_first: tuple[int, ...] = ()
    """Of those, first ones of an answer: prompts that ended in it."""
    missing_bytes: tuple[int, ...] = ()
    """Of experts that it used and that had to be read for it, beforehand or while compute waited."""
    num_experts: tuple[int, ...] = ()
    """Distinct experts that it used, summed over the MoE layers."""


NO_STEPS = Steps()


@dataclass(frozen=True)
class StreamsAnswer:
    """All requests of a job, answered."""

    seconds: float
    """From the first request to the last token."""
    answers: tuple[Answered, ...]
    """Stream by stream."""
    steps: Steps = NO_STEPS
    """Empty where the arm does not know them."""
    link_bytes_per_s: float = 0.0
    """What the link that brings experts carried when it was measured; 0 where there is none."""
    num_moe_layers: int = 0
    """0 where the arm does not say."""
