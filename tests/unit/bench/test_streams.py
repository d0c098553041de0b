"""Streams whose next request follows the last answer, on a clock that is set by hand."""

from __future__ import annotations

import random

import pytest

from pgmoe.bench.arms.closed_loop import ClosedLoop
from pgmoe.bench.streams import Ask, StreamsJob

JOB = StreamsJob(((Ask((1, 2), 2), Ask((3,), 1)), (Ask((4, 5, 6), 1),)))


class Clock:
    """Says the time that it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_streams_next_request_is_sent_when_its_last_is_answered() -> None:
    clock = Clock()
    loop = ClosedLoop(JOB, clock)
    first, other = loop.begin()
    assert (first.ask, other.ask) == (Ask((1, 2), 2), Ask((4, 5, 6), 1))
    clock.now = 101.0
    assert loop.take(first.key, [7]) is None
    assert loop.take(other.key, [8]) is None  # its stream has no other
    clock.now = 103.0
    following = loop.take(first.key, [9])
    assert following is not None
    assert following.ask == Ask((3,), 1)
    assert not loop.is_done
    clock.now = 106.0
    assert loop.take(following.key, [10]) is None
    assert loop.is_done
    answer = loop.answer()
    assert answer.seconds == 6.0
    assert [a.tokens for a in answer.answers] == [(7, 9), (10,), (8,)]
    assert [a.arrivals_s for a in answer.answers] == [(1.0, 3.0), (3.0,), (1.0,)]


def test_an_empty_piece_ends_nothing() -> None:
    loop = ClosedLoop(JOB, Clock())
    _, other = loop.begin()
    loop.take(other.key, [8])
    assert loop.take(other.key, []) is None
    assert not loop.is_done


def test_tokens_may_come_with_their_times() -> None:
    clock = Clock()
    loop = ClosedLoop(StreamsJob(((Ask((1,), 2),),)), clock)
    (sent,) = loop.begin()
    clock.now = 200.0
    loop.take(sent.key, [5, 6], [101.5, 102.0])
    answer = loop.answer()
    assert answer.answers[0].arrivals_s == (1.5, 2.0)
    assert answer.seconds == 2.0


def test_more_tokens_than_asked_for_are_an_error() -> None:
    loop = ClosedLoop(JOB, Clock())
    _, other = loop.begin()
    with pytest.raises(ValueError, match="2 tokens at 2 times, asked for 1"):
        loop.take(other.key, [1, 2])


def test_answers_vary_in_length_around_what_was_asked_for() -> None:
    draw = random.Random(1)
    prompts = [[draw.randrange(9) for _ in range(5)] for _ in range(64)]
    job = StreamsJob.of(prompts, 16, num_tokens=32, vary=25)
    assert {len(stream) for stream in job.streams} == {4}
    lengths = [ask.num_tokens for ask in job.asks]
    assert (min(lengths), max(lengths)) == (24, 40)
    assert job.num_tokens == sum(lengths)
    assert job.longest == 45
    assert job == StreamsJob.of(prompts, 16, num_tokens=32, vary=25)
    assert {ask.num_tokens for ask in StreamsJob.of(prompts, 16, 32, vary=0).asks} == {32}


def test_a_warm_up_is_the_beginning_of_every_streams_first_answer() -> None:
    assert JOB.first(1) == StreamsJob(((Ask((1, 2), 1),), (Ask((4, 5, 6), 1),)))
    assert JOB.first(5) == StreamsJob(((Ask((1, 2), 2),), (Ask((4, 5, 6), 1),)))
