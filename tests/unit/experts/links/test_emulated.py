from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmoe.experts.host_tier import HostTier
from pgmoe.experts.links.base import Arrival, Transfer, Urgency
from pgmoe.experts.links.emulated import EmulatedLink, WallClock
from pgmoe.experts.policies import make_policy
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import PAGE, ExpertId
from pgmoe.metrics.stats import LinkStats
from tests.support.expert_files import file_bytes, tensor_bytes, write_layers
from tests.support.transfers import FakeClock

NUM_EXPERTS = 40
LATENCY_S = 0.25
BANDWIDTH = 1024.0  # with whole powers of two no moment is rounded
DEMAND, EXACT, GUESS = Urgency
SLOT = torch.empty(0, dtype=torch.uint8)


def size_of(expert: ExpertId) -> int:
    return 256 * (1 + expert.expert % 4)


@pytest.fixture(scope="module")
def source() -> HostTier:
    """Every expert's blob holds its number, in every byte."""

    class Numbers:
        def read(self, expert: ExpertId, slot: torch.Tensor) -> int:
            slot.fill_(expert.expert)
            return size_of(expert)

        def verify(self, expert: ExpertId, slot: torch.Tensor) -> None: ...

        def is_corrupt(self, expert: ExpertId) -> bool:
            return False

        def starts(self, expert: ExpertId) -> dict[str, int]:
            return {}

        def close(self) -> None: ...

    tier = HostTier(NUM_EXPERTS, PAGE, make_policy("lru", [NUM_EXPERTS]), pinned=False)
    tier.fill([ExpertId(0, e) for e in range(NUM_EXPERTS)], Numbers(), num_readers=1)
    return tier


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def link(source: HostTier, clock: FakeClock) -> Iterator[EmulatedLink]:
    found = EmulatedLink(source, size_of, LinkStats(), bandwidth=BANDWIDTH, latency_s=LATENCY_S, clock=clock)
    yield found
    found.close()


def transfer(number: int, urgency: Urgency = DEMAND) -> Transfer:
    return Transfer(ExpertId(0, number), SLOT, urgency, "demand" if urgency is DEMAND else "prefetch")


def numbers(arrivals: list[Arrival]) -> list[int]:
    return [a.transfer.expert.expert for a in arrivals]


def test_a_blob_is_the_sources_own_memory(link: EmulatedLink, source: HostTier) -> None:
    link.order(transfer(7))
    arrival = link.wait()
    assert arrival.error is None
    assert arrival.blob.data_ptr() == source.blob(ExpertId(0, 7)).data_ptr()
    assert set(arrival.blob.tolist()) == {7}


def test_an_expert_is_there_when_latency_and_bytes_have_passed_and_no_sooner(
    link: EmulatedLink, clock: FakeClock
) -> None:
    link.order(transfer(3))  # 1024 bytes: 1.25 s
    link.order(transfer(0))  # 256 bytes: 0.5 s more
    clock.time = 1.2499
    assert link.arrived() == []
    clock.time = 1.25
    assert numbers(link.arrived()) == [3]
    assert link.arrived() == []
    assert link.wait().transfer.expert.expert == 0
    assert clock.time == 1.75


def test_demand_overtakes_what_waits_but_not_what_moves(link: EmulatedLink) -> None:
    for number, urgency in [(0, GUESS), (1, GUESS), (2, EXACT), (3, DEMAND), (4, DEMAND)]:
        link.order(transfer(number, urgency))
    assert numbers([link.wait() for _ in range(5)]) == [0, 3, 4, 2, 1]


def test_a_promoted_guess_overtakes_and_comes_once(link: EmulatedLink) -> None:
    guesses = [transfer(n, GUESS) for n in range(4)]
    for guess in guesses:
        link.order(guess)
    link.promote(guesses[3], DEMAND)
    assert numbers([link.wait() for _ in range(4)]) == [0, 3, 1, 2]
    assert link.arrived() == []


def test_a_cancelled_transfer_takes_no_time_and_is_not_counted(source: HostTier, clock: FakeClock) -> None:
    stats = LinkStats()
    link = EmulatedLink(source, size_of, stats, bandwidth=BANDWIDTH, latency_s=LATENCY_S, clock=clock)
    first, dropped, last = (transfer(n) for n in (0, 1, 2))
    for one in (first, dropped, last):
        link.order(one)
    assert link.cancel(dropped)
    assert not link.cancel(first)
    assert not link.cancel(dropped)
    assert numbers([link.wait(), link.wait()]) == [0, 2]
    assert clock.time == 2 * LATENCY_S + 1.0
    assert dict(stats.num_bytes) == {"demand": 1024}
    assert (stats.busy_s, list(stats.transfer_s)) == (1.5, [0.5, 1.0])
    assert stats.bandwidth == BANDWIDTH


def arrivals_of_a_serial_link(events: list[tuple[float, str, int, Urgency]]) -> dict[int, float]:
    """When each transfer ends, by trying every moment of a fine clock: one at a time, the most urgent first.

    `events`: moment, what happens, to which transfer, and the urgency that it has from then on.
    """
    tick, now = 0.25, 0.0  # everything happens at whole ticks
    waiting: dict[int, Urgency] = {}
    running: tuple[int, float] | None = None
    found: dict[int, float] = {}
    pending = list(events)
    while pending or waiting or running:
        if running is not None and running[1] == now:
            found[running[0]] = now
            running = None
        # What has ended by now is over, and who then waited has begun, before anything else happens now.
        if running is None and waiting:
            running = begin(waiting, now)
        while pending and pending[0][0] == now:
            _, what, number, urgency = pending.pop(0)
            if what == "order":
                waiting[number] = urgency
            elif number in waiting and what == "cancel":
                del waiting[number]
            elif number in waiting:
                waiting[number] = min(waiting[number], urgency)
            if running is None and waiting:
                running = begin(waiting, now)
        now += tick
    return found


def begin(waiting: dict[int, Urgency], now: float) -> tuple[int, float]:
    number = min(waiting, key=lambda n: waiting[n])
    del waiting[number]
    return number, now + LATENCY_S + size_of(ExpertId(0, number)) / BANDWIDTH


@st.composite
def event_lists(draw: st.DrawFn) -> list[tuple[float, str, int, Urgency]]:
    moment, ordered, events = 0.0, 0, []
    for _ in range(draw(st.integers(1, NUM_EXPERTS))):
        moment += draw(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 3.0]))
        what = draw(st.sampled_from(["order", "order", "promote", "cancel"])) if ordered else "order"
        number = ordered if what == "order" else draw(st.integers(0, ordered - 1))
        ordered += what == "order"
        events.append((moment, what, number, draw(st.sampled_from(Urgency))))
    return events


@settings(max_examples=300, deadline=None)
@given(events=event_lists(), poll=st.booleans())
def test_experts_arrive_exactly_when_a_serial_link_would_deliver_them(
    source: HostTier, events: list[tuple[float, str, int, Urgency]], poll: bool
) -> None:
    clock, stats = FakeClock(), LinkStats()
    link = EmulatedLink(source, size_of, stats, bandwidth=BANDWIDTH, latency_s=LATENCY_S, clock=clock)
    expected = arrivals_of_a_serial_link(events)
    transfers: dict[int, Transfer] = {}
    seen: list[int] = []
    for moment, what, number, urgency in events:
        clock.time = moment
        if poll:  # whoever looks, sees those whose time has come, and changes nothing
            seen += numbers(link.arrived())
            assert set(seen) == {n for n, end in expected.items() if end <= moment}
        if what == "order":
            transfers[number] = transfer(number, urgency)
            link.order(transfers[number])
        elif what == "promote":
            link.promote(transfers[number], urgency)
        elif link.cancel(transfers[number]):
            assert number not in expected
    while len(seen) < len(expected):
        before = clock.time
        seen += numbers([link.wait()])
        assert clock.time == max(before, expected[seen[-1]])
    assert seen == sorted(expected, key=lambda n: expected[n])
    assert stats.num_bytes.total() == sum(size_of(ExpertId(0, n)) for n in expected)


def test_the_real_clock_sleeps_until_the_moment() -> None:
    clock = WallClock()
    moment = clock.now() + 0.002
    clock.sleep_until(moment)
    assert clock.now() >= moment
    clock.sleep_until(moment)  # over already


def test_weights_are_found_in_the_blob(tmp_path: Path) -> None:
    layers = write_layers(tmp_path)
    store = DiskStore(layers)
    experts = [ExpertId(i, e) for i in range(2) for e in range(6)]
    tier = HostTier(12, layers[0].layout.slot_bytes, make_policy("lru", [6, 6]), pinned=False)
    tier.fill(experts, store, num_readers=2)
    for expert in experts:
        layer = layers[expert.layer]
        views = layer.layout.views(tier.blob(expert), store.starts(expert))
        assert tensor_bytes(views) == file_bytes(layer, expert.expert)
    store.close()
