from __future__ import annotations

from types import SimpleNamespace

import pytest

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.job import Answer, Job
from tests.support.transfers import FakeClock


def test_a_random_stream_is_always_the_same_and_within_the_vocabulary() -> None:
    job = Job.random_stream(vocab_size=50, prompt_length=7, num_tokens=400)
    assert job == Job.random_stream(vocab_size=50, prompt_length=7, num_tokens=400)
    assert job != Job.random_stream(vocab_size=50, prompt_length=7, num_tokens=400, seed=1)
    assert (len(job.prompt), len(job.forced or ())) == (7, 400)
    assert set(job.forced or ()) == set(range(50))


def test_a_shorter_job_starts_with_the_same_tokens() -> None:
    job = Job.random_stream(vocab_size=50, prompt_length=7, num_tokens=40)
    assert job.first(8) == Job(job.prompt, 8, job.forced)
    assert job.first(100) == job


def test_the_speed_is_that_after_the_first_token() -> None:
    assert Answer(tokens=(4, 5, 6), first_token_s=9.0, decode_s=0.5).tokens_per_s == 4.0


def test_what_is_done_between_tokens_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = FakeClock()
    monkeypatch.setattr("pgmoe.bench.arms.clock.time", SimpleNamespace(perf_counter=now.now))
    seen: list[int] = []

    def pause(num_tokens: int) -> None:
        seen.append(num_tokens)
        now.time += 0.25

    clock = TokenClock(pause)
    for token in (7, 8, 9):
        now.time += 2
        clock.take(token)
    assert clock.answer() == Answer(tokens=(7, 8, 9), first_token_s=2, decode_s=4)
    assert seen == [1, 2, 3]
