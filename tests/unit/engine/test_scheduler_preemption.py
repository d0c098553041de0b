from __future__ import annotations

from typing import Any

import pytest

from pgmoe.engine.schedule import SchedulerOutput
from pgmoe.engine.scheduler import Scheduler
from tests.support.scheduling import ANY, add, only, scheduler_with, sizes, step


def test_the_latest_gives_way_when_no_block_is_left_and_is_computed_again() -> None:
    scheduler = scheduler_with(num_blocks=4, prefix_cache=False)
    add(scheduler, "a", 6)
    add(scheduler, "b", 7)
    assert sizes(step(scheduler)) == {"a": 6, "b": 7}
    assert sizes(step(scheduler)) == {"a": 1, "b": 1}
    output = step(scheduler)
    assert (sizes(output), output.preempted) == ({"a": 1}, ("b",)), "b has no block for its ninth token"
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_preemptions) == (1, 1, 1)
    add(scheduler, "c", 1)
    assert sizes(step(scheduler)) == {"a": 1}, "who ran before is the first in the queue"
    scheduler.finish("a")
    output = scheduler.schedule(ANY)
    b = output.chunks[0] if output.chunks[0].sequence_id == "b" else output.chunks[1]
    assert (b.start, len(b.token_ids)) == (0, 9)
    assert b.token_ids[7:] == (0, 7), "with its answer so far"


def test_a_less_urgent_sequence_gives_way_even_if_it_came_first() -> None:
    scheduler = scheduler_with(num_blocks=4)
    add(scheduler, "a", 7, priority=1)
    add(scheduler, "b", 7)
    step(scheduler)
    step(scheduler)
    output = step(scheduler)
    assert (sizes(output), output.preempted) == ({"b": 1}, ("a",))


def test_who_gave_way_is_admitted_before_all_of_its_priority_that_have_not_run() -> None:
    choices = iter(["a", "c"])
    scheduler = scheduler_with(num_blocks=4, max_running=2, prefer=lambda *_: next(choices, None))
    for name in "abc":
        add(scheduler, name, 7)
    assert sizes(step(scheduler)) == {"a": 7, "c": 7}
    while not (output := step(scheduler)).preempted:
        pass
    assert output.preempted == ("c",)
    scheduler.finish("a")
    assert "c" in sizes(step(scheduler, 1)), "though b came first"


def test_a_copy_for_one_who_has_to_give_way_is_withdrawn_and_its_source_swapped_out() -> None:
    scheduler = scheduler_with(num_blocks=5, num_host_blocks=4, swap_pays=lambda num_tokens: True)
    add(scheduler, "a", 3)
    add(scheduler, "b", 6, num_branches=3)
    output = scheduler.schedule(ANY)
    scheduler.complete(output.chunks)
    scheduler.fork("b", "d")
    scheduler.fork("b", "c")
    for name, num_tokens in {"a": 6, "b": 1, "c": 1, "d": 1}.items():
        for token_id in range(num_tokens):
            scheduler.append(name, token_id)
    shared = next(chunk.blocks for chunk in output.chunks if chunk.sequence_id == "b")
    # b and c get copies of the second block, and d writes into it. Then a needs two blocks: d and c give way.
    output = step(scheduler)
    assert (sizes(output), output.preempted) == ({"b": 1, "a": 6}, ("d", "c"))
    assert [source for source, _ in output.swaps_out] == [*shared, *shared]
    assert [source for source, _ in output.copies] == [shared[1]]


def test_a_step_in_which_one_gives_way_admits_nobody() -> None:
    scheduler = scheduler_with(num_blocks=4)
    add(scheduler, "a", 7)
    add(scheduler, "b", 7)
    step(scheduler)
    step(scheduler)
    add(scheduler, "c", 1, priority=-1)
    assert sizes(step(scheduler)) == {"a": 1}
    assert sizes(step(scheduler)) == {"a": 1, "c": 1}


def test_a_chunk_is_withdrawn_from_one_who_has_to_give_way_after_all() -> None:
    scheduler = scheduler_with(num_blocks=4, prefix_cache=False)
    add(scheduler, "a", 7)
    add(scheduler, "b", 6)
    step(scheduler)
    step(scheduler)
    scheduler.append("a", 42)  # two to compute: single tokens, b's, are given out before
    output = step(scheduler)
    assert (sizes(output), output.preempted) == ({"a": 2}, ("b",))


def test_a_sequence_that_is_preempted_finds_what_is_left_of_its_blocks() -> None:
    scheduler = scheduler_with(num_blocks=5)
    add(scheduler, "a", 7)
    add(scheduler, "b", 10)
    step(scheduler)
    step(scheduler)
    assert step(scheduler).preempted == ("b",)
    scheduler.finish("a")
    assert only(step(scheduler)).start == 8, "its blocks were not needed meanwhile"
    assert scheduler.cached_tokens("b") == 0, "those of its first admission count"


def swapped(**limits: Any) -> tuple[Scheduler, SchedulerOutput]:
    """b has just been swapped out with eight computed tokens for a."""
    defaults: dict[str, Any] = {"num_host_blocks": 2, "swap_pays": lambda num_tokens: num_tokens == 8}
    scheduler = scheduler_with(num_blocks=4, **defaults | limits)
    add(scheduler, "a", 7)
    add(scheduler, "b", 7)
    step(scheduler)
    step(scheduler)
    return scheduler, step(scheduler)


def test_where_it_pays_blocks_are_moved_to_the_host_and_back() -> None:
    scheduler, output = swapped()
    assert output.preempted == ("b",)
    assert [source for source, _ in output.swaps_out] == [2, 3]
    assert scheduler.schedule(ANY).swaps_in == (), "a still has the room"
    scheduler.finish("a")
    back = step(scheduler)
    assert [host for host, _ in back.swaps_in] == [host for _, host in output.swaps_out]
    assert tuple(device for _, device in back.swaps_in) == only(back).blocks[:2]
    assert (only(back).start, only(back).token_ids) == (8, (7,))


@pytest.mark.parametrize("limits", [{"num_host_blocks": 1}, {"swap_pays": lambda n: n < 8}])
def test_what_does_not_pay_or_does_not_fit_into_the_host_is_computed_again(limits: dict[str, Any]) -> None:
    scheduler, output = swapped(**limits)
    assert (output.preempted, output.swaps_out) == (("b",), ())
    scheduler.finish("a")
    assert scheduler.schedule(ANY).swaps_in == ()


def test_a_sequence_that_is_finished_gives_its_host_blocks_back() -> None:
    scheduler, first = swapped(max_running=2)
    scheduler.finish("b")
    add(scheduler, "c", 1)
    while not (output := step(scheduler)).preempted:
        pass
    assert output.preempted == ("c",)
    scheduler.finish("c")
    scheduler.finish("a")
    scheduler.check_integrity()
    assert first.swaps_out


def test_states_of_constant_size_are_computed_again_as_they_are_in_no_block() -> None:
    scheduler = scheduler_with(num_blocks=6, num_host_blocks=6, swap_pays=lambda n: True)
    for name in "ab":
        add(scheduler, name, 7, num_fixed_blocks=1)
    while not (output := step(scheduler)).preempted:
        pass
    assert output.swaps_out == ()
