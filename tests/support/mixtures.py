"""Random mixtures of requests, played to an engine as they arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pgmoe.engine.engine import Engine
from pgmoe.request import Completion, Request, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True, logprobs=2)


@dataclass(frozen=True)
class Arrival:
    """One request of a mixture."""

    step: int
    """Before which it arrives."""
    request: Request
    cancelled_after: int | None = None
    """Tokens after which its caller gives it up."""


def random_mixture(
    seed: int, num_requests: int, vocab_size: int, longest_prompt: int, longest_answer: int
) -> list[Arrival]:
    """Prompts of 1 to `longest_prompt` tokens, short ones more often; one in eight is cancelled."""
    draw = random.Random(seed)
    arrivals, step = [], 0
    for number in range(num_requests):
        step += draw.choice((0, 0, 0, 0, 1))
        length = round(longest_prompt ** draw.random())
        num_tokens = draw.randint(1, longest_answer)
        request = Request(
            request_id=f"r{number}",
            prompt_token_ids=tuple(draw.randrange(4, vocab_size) for _ in range(length)),
            params=replace(GREEDY, max_tokens=num_tokens),
        )
        cancelled = draw.randrange(num_tokens) if draw.random() < 1 / 8 else None
        arrivals.append(Arrival(step, request, cancelled))
    return arrivals


@dataclass
class Played:
    """What came of a mixture."""

    pieces: dict[str, list[RequestOutput]] = field(default_factory=dict)
    num_steps: int = 0
    most_running: int = 0

    def tokens(self, request_id: str) -> tuple[int, ...]:
        """Of one answer, as far as it came."""
        return tuple(token for piece in self.pieces[request_id] for token in piece.token_ids)


def play(engine: Engine, arrivals: Sequence[Arrival]) -> Played:
    """Step until all have ended. Errors are raised."""
    played, waiting = Played(), list(arrivals)
    cancelled = {a.request.request_id: a.cancelled_after for a in arrivals}
    while waiting or engine.has_work:
        while waiting and waiting[0].step <= played.num_steps:
            request = waiting.pop(0).request
            played.pieces[request.request_id] = []
            engine.add(engine.accept(request))
        for output in engine.step():
            if output.error is not None:
                raise output.error
            assert output.piece is not None
            played.pieces[output.request_id].append(output.piece)
        for request_id, pieces in played.pieces.items():
            if cancelled[request_id] is not None and len(pieces) >= cancelled[request_id]:  # type: ignore[operator]
                engine.abort(request_id)
        played.num_steps += 1
        played.most_running = max(played.most_running, engine.stats.num_running)
    return played


def alone(engine: Engine, request: Request) -> Completion:
    """The answer to one request that nothing else runs beside."""
    played = play(engine, [Arrival(0, request)])
    return Completion.join(played.pieces[request.request_id])


def first_difference(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """Where two answers part, if they do, the shorter one's end not counting."""
    pairs = enumerate(zip(tokens, expected, strict=False))
    return next((place for place, (got, wanted) in pairs if got != wanted), None)
