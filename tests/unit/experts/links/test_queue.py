from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pgmoe.experts.links.base import Transfer, Urgency
from pgmoe.experts.links.queue import TransferQueue
from pgmoe.metrics.stats import LinkStats
from tests.support.transfers import PATIENCE_S, GatedMover, transfer

DEMAND, EXACT, GUESS = Urgency


@contextmanager
def queue_of(mover: GatedMover, num_workers: int = 1) -> Iterator[tuple[TransferQueue, LinkStats]]:
    stats = LinkStats()
    queue = TransferQueue("test", num_workers, mover.move, mover.done, stats)
    yield queue, stats
    queue.close()


def play_out(mover: GatedMover, count: int) -> list[Transfer]:
    """End one after the other, `count` of them, in the order in which they begin."""
    found = []
    for _ in range(count):
        found.append(mover.next_begun())
        mover.finish(found[-1])
    return found


def test_the_most_urgent_goes_first_and_equals_in_the_order_in_which_they_came() -> None:
    mover = GatedMover()
    with queue_of(mover) as (queue, _):
        queue.put(first := transfer(GUESS))
        assert mover.next_begun() is first
        waiting = [transfer(u) for u in (GUESS, DEMAND, EXACT, GUESS, EXACT, DEMAND)]
        for one in waiting:
            queue.put(one)
        mover.finish(first)
        order = play_out(mover, len(waiting))
    assert order == [waiting[i] for i in (1, 5, 2, 4, 0, 3)]


def test_a_guess_that_becomes_demanded_overtakes_and_is_moved_once() -> None:
    mover = GatedMover()
    with queue_of(mover) as (queue, stats):
        queue.put(first := transfer())
        assert mover.next_begun() is first
        guesses = [transfer(GUESS, "prefetch") for _ in range(3)]
        for guess in guesses:
            queue.put(guess)
        queue.put(demand := transfer())
        guesses[2].urgency = DEMAND
        queue.reorder(guesses[2])
        mover.finish(first)
        assert play_out(mover, 4) == [demand, guesses[2], guesses[0], guesses[1]]
        guesses[2].urgency = DEMAND
        queue.reorder(guesses[2])  # it is over: of no consequence
    assert mover.none_begun()
    assert dict(stats.num_bytes) == {"demand": 20, "prefetch": 30}  # a promoted one stays a prefetch
    assert len(stats.transfer_s) == 5


def test_a_promotion_that_a_worker_saw_half_of_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It throws the former entry away and sleeps, before the new one is there: that has to wake it."""
    asleep = threading.Event()

    class Telling(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            asleep.set()  # the lock is held still: whoever gets it next comes after the sleep began
            return super().wait(timeout)

    own = SimpleNamespace(Condition=Telling, Thread=threading.Thread)
    monkeypatch.setattr("pgmoe.experts.links.queue.threading", own)
    mover = GatedMover()
    with queue_of(mover) as (queue, _):
        queue.put(first := transfer())
        assert mover.next_begun() is first
        queue.put(guess := transfer(GUESS))
        guess.urgency = DEMAND
        asleep.clear()
        mover.finish(first)
        assert asleep.wait(PATIENCE_S)
        queue.reorder(guess)
        assert play_out(mover, 1) == [guess]


def test_a_cancelled_transfer_leaves_no_trace() -> None:
    mover = GatedMover()
    with queue_of(mover) as (queue, stats):
        queue.put(first := transfer())
        assert mover.next_begun() is first
        queue.put(dropped := transfer(GUESS, "prefetch"))
        queue.put(kept := transfer(GUESS))
        assert queue.cancel(dropped)
        assert not queue.cancel(dropped)
        assert not queue.cancel(first)  # it moves
        mover.finish(first)
        assert play_out(mover, 1) == [kept]
        assert not queue.cancel(kept)
    assert mover.none_begun()
    assert dict(stats.num_bytes) == {"demand": 20}


def test_a_failure_is_told_and_counts_no_bytes_and_the_worker_goes_on() -> None:
    mover, error = GatedMover(), OSError("no")
    with queue_of(mover) as (queue, stats):
        for one in (bad := transfer(), good := transfer()):
            queue.put(one)
        assert mover.next_begun() is bad
        mover.finish(bad, error)
        assert play_out(mover, 1) == [good]
    assert dict(stats.num_bytes) == {"demand": 10}
    assert stats.busy_s >= sum(stats.transfer_s) > 0


def test_a_closed_queue_drops_what_waits_ends_what_runs_and_takes_no_more() -> None:
    mover = GatedMover()
    with queue_of(mover) as (queue, _):
        queue.put(running := transfer())
        queue.put(transfer())
        mover.next_begun()
        closing = threading.Thread(target=queue.close)
        closing.start()
        while True:  # until the other thread has closed it
            try:
                queue.put(transfer())
            except RuntimeError:
                break
        assert closing.is_alive()
        mover.finish(running)
        closing.join()
        queue.close()
    assert mover.none_begun()


class QueueAgainstAPlainList(RuleBasedStateMachine):
    """Everything that may happen to a queue, one thing at a time, beside a list that says who is next."""

    @initialize(num_workers=st.integers(1, 3))
    def start(self, num_workers: int) -> None:
        self.mover, self.stats = GatedMover(), LinkStats()
        self.num_workers = num_workers
        self.queue = TransferQueue("test", num_workers, self.mover.move, self.mover.done, self.stats)
        self.waiting: list[Transfer] = []
        """By when each got its present urgency."""
        self.running: list[Transfer] = []
        self.moved: Counter[str] = Counter()

    @rule(urgency=st.sampled_from(Urgency), reason=st.sampled_from(["demand", "prefetch"]))
    def put(self, urgency: Urgency, reason: str) -> None:
        self.waiting.append(new := transfer(urgency, reason))
        self.queue.put(new)
        self.settle()

    @rule(which=st.integers(0, 99), urgency=st.sampled_from(Urgency))
    def reorder(self, which: int, urgency: Urgency) -> None:
        if everything := self.waiting + self.running:
            chosen = everything[which % len(everything)]
            if urgency < chosen.urgency and chosen in self.waiting:
                self.waiting.remove(chosen)
                self.waiting.append(chosen)
            chosen.urgency = min(chosen.urgency, urgency)
            self.queue.reorder(chosen)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if everything := self.waiting + self.running:
            chosen = everything[which % len(everything)]
            assert self.queue.cancel(chosen) == (chosen in self.waiting)
            if chosen in self.waiting:
                self.waiting.remove(chosen)

    @rule(which=st.integers(0, 2), fails=st.booleans())
    def finish(self, which: int, fails: bool) -> None:
        if self.running:
            ended = self.running.pop(which % len(self.running))
            self.mover.finish(ended, OSError() if fails else None)
            self.moved[ended.reason] += 0 if fails else 10
            self.settle()

    def settle(self) -> None:
        """A worker that has nothing to do takes the next one."""
        if self.waiting and len(self.running) < self.num_workers:
            following = min(self.waiting, key=lambda t: t.urgency)
            assert self.mover.next_begun() is following
            self.waiting.remove(following)
            self.running.append(following)

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        while self.running:
            self.finish(0, False)
        assert not self.waiting
        self.queue.close()
        assert self.mover.none_begun()
        assert +self.stats.num_bytes == +self.moved


def test_no_order_of_events_upsets_the_queue() -> None:
    run_state_machine_as_test(
        QueueAgainstAPlainList, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


def test_threads_that_promote_and_cancel_while_others_move_lose_no_transfer() -> None:
    draw, ended, all_ended = random.Random(0), Counter[Transfer](), threading.Semaphore(0)

    def done(transfer: Transfer, error: Exception | None) -> None:
        ended[transfer] += 1  # each is this worker's alone
        all_ended.release()

    queue = TransferQueue("test", 4, lambda transfer: 1, done, LinkStats())
    expected = []
    for _ in range(3000):
        queue.put(one := transfer(draw.choice(list(Urgency))))
        older = draw.choice(expected) if expected else one
        older.urgency = DEMAND
        queue.reorder(older)
        if draw.random() < 0.3 and queue.cancel(one):
            continue
        expected.append(one)
    for _ in expected:
        assert all_ended.acquire(timeout=PATIENCE_S)
    queue.close()
    assert ended == Counter(expected)
