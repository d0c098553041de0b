from __future__ import annotations

from typing import Any

import pytest

from tests.support.scheduling import ANY, add, only, only_of, scheduler_with, sizes, step


def test_a_prompt_begins_where_a_computed_prefix_ends() -> None:
    scheduler = scheduler_with()
    prompt = tuple(range(9))
    add(scheduler, "a", token_ids=prompt)
    first = only(step(scheduler))
    add(scheduler, "b", token_ids=(*prompt, 77))
    assert scheduler.cached_tokens("b") == 0
    second = only_of("b", step(scheduler))
    assert (second.start, second.token_ids) == (8, (8, 77))
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert (scheduler.cached_tokens("a"), scheduler.cached_tokens("b")) == (0, 8)
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (19, 8)


def test_a_prefix_is_found_after_its_sequence_is_gone_and_in_its_answer() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", token_ids=(5, 6, 7))
    step(scheduler)
    step(scheduler)
    scheduler.finish("a")
    assert scheduler.num_free_blocks == 64
    add(scheduler, "b", token_ids=(5, 6, 7, 0, 9))  # a's answer began with 0
    assert only(step(scheduler)).start == 4


def test_a_prefix_is_found_only_when_its_chunk_was_computed() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", token_ids=tuple(range(9)))
    add(scheduler, "b", token_ids=tuple(range(9)))
    assert [chunk.start for chunk in step(scheduler).chunks] == [0, 0], "in the same step"
    assert scheduler.num_used_blocks == 4, "but the full blocks are then kept once"


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        ({"prefix_cache": False}, {}),
        ({}, {"shares_prefix": False}),
        ({}, {"num_context_tokens": 3}),
        ({}, {"num_fixed_blocks": 1}),
    ],
)
def test_prefixes_are_not_shared_where_they_must_not_be(
    limits: dict[str, Any], fields: dict[str, Any]
) -> None:
    scheduler = scheduler_with(**limits)
    add(scheduler, "a", token_ids=tuple(range(9)))
    step(scheduler)
    scheduler.finish("a")
    add(scheduler, "b", token_ids=tuple(range(9)), **fields)
    assert only(step(scheduler)).start == 0
    assert scheduler.cached_tokens("b") == 0


def test_a_prompt_waits_for_fewer_blocks_when_its_prefix_is_in_use() -> None:
    scheduler = scheduler_with(num_blocks=4)
    add(scheduler, "a", token_ids=tuple(range(9)))
    step(scheduler)
    add(scheduler, "b", token_ids=tuple(range(10)))
    assert only_of("b", step(scheduler)).start == 8


def test_branches_share_the_prompt_and_copy_the_block_that_they_write() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 6, num_branches=3)
    output = scheduler.schedule(ANY)
    assert scheduler.num_running == 3
    scheduler.complete(output.chunks)
    for name in ("a1", "a2"):
        scheduler.fork("a", name)
    assert (scheduler.num_running, scheduler.num_used_blocks) == (3, 2)
    for token_id, name in enumerate(("a", "a1", "a2")):
        scheduler.append(name, token_id)
    output = step(scheduler)
    assert {chunk.sequence_id: chunk.token_ids for chunk in output.chunks} == {
        "a": (0,),
        "a1": (1,),
        "a2": (2,),
    }
    first, second, third = (chunk.blocks for chunk in output.chunks)
    assert first[0] == second[0] == third[0]
    assert len({first[1], second[1], third[1]}) == 3
    assert len(output.copies) == 2, "the last one writes into the block itself"
    assert {source for source, _ in output.copies} == {1}


def test_branches_copy_nothing_where_the_prompt_fills_its_blocks() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 8, num_branches=2)
    scheduler.complete(scheduler.schedule(ANY).chunks)
    scheduler.fork("a", "a1")
    scheduler.append("a", 1)
    scheduler.append("a1", 2)
    output = step(scheduler)
    assert output.copies == ()
    assert scheduler.num_used_blocks == 4


def test_a_branch_gives_way_by_itself() -> None:
    scheduler = scheduler_with(num_blocks=3)
    add(scheduler, "a", 6, num_branches=2)
    scheduler.complete(scheduler.schedule(ANY).chunks)
    scheduler.fork("a", "b")
    scheduler.append("a", 1)
    scheduler.append("b", 2)
    for _ in range(2):
        assert sizes(step(scheduler)) == {"a": 1, "b": 1}
    assert step(scheduler).preempted == ("b",)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.finish("a")
    assert only(step(scheduler)).token_ids[-2:] == (6, 7), "with its own answer"


def test_places_of_branches_that_never_came_are_free_in_the_end() -> None:
    scheduler = scheduler_with(max_running=3)
    add(scheduler, "a", num_branches=3)
    add(scheduler, "b")
    assert sizes(step(scheduler)) == {"a": 1}
    scheduler.finish("a")
    assert sizes(step(scheduler)) == {"b": 1}


def test_a_sequence_is_forked_with_its_prompt_computed_and_no_more_often_than_agreed() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 6, num_branches=2)
    scheduler.complete(scheduler.schedule(4).chunks)
    with pytest.raises(AssertionError, match="2 tokens left"):
        scheduler.fork("a", "b")
    scheduler.complete(scheduler.schedule(4).chunks)
    scheduler.fork("a", "b")
    for name in "ab":
        with pytest.raises(AssertionError, match="no places left"):
            scheduler.fork(name, "c")


def test_a_context_has_blocks_of_its_own_from_admission_on() -> None:
    scheduler = scheduler_with()
    for name in "ab":
        add(scheduler, name, token_ids=(0,), num_context_tokens=9)
    first, second = step(scheduler).chunks
    assert (len(first.context_blocks), len(first.blocks), scheduler.num_used_blocks) == (3, 1, 8)
    assert not {*first.context_blocks, *first.blocks} & {*second.context_blocks, *second.blocks}
    assert step(scheduler).chunks[0].context_blocks == first.context_blocks


def test_branches_share_their_context() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", token_ids=(0,), num_context_tokens=9, num_branches=2)
    output = scheduler.schedule(ANY)
    scheduler.complete(output.chunks)
    scheduler.fork("a", "b")
    for name in "ab":
        scheduler.append(name, 1)
    assert {chunk.context_blocks for chunk in step(scheduler).chunks} == {only(output).context_blocks}
    assert scheduler.num_used_blocks == 5
    scheduler.finish("a")
    assert scheduler.num_used_blocks == 4


def test_states_of_constant_size_are_charged_for_each_answer() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 4, num_branches=2, num_fixed_blocks=3)
    scheduler.complete(scheduler.schedule(ANY).chunks)
    assert scheduler.num_used_blocks == 8, "and two for its tokens, the next included"
    scheduler.fork("a", "b")
    scheduler.finish("a")
    assert scheduler.num_used_blocks == 4
    scheduler.finish("b")
    assert scheduler.num_used_blocks == 0
