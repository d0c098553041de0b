from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pgmoe.engine.schedule import Chunk, SchedulerOutput
from pgmoe.engine.scheduler import MOST_CHOICES
from pgmoe.errors import EngineOverloaded
from tests.support.scheduling import ANY, add, only, scheduler_with, sizes, step

Tokens = Mapping[str, Sequence[int]]


def test_nothing_is_scheduled_where_nobody_asks() -> None:
    assert scheduler_with().schedule(ANY) == SchedulerOutput()


def test_a_prompt_is_computed_then_its_answer_token_by_token() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", token_ids=(7, 8, 9))
    assert only(step(scheduler)) == Chunk(sequence_id="a", token_ids=(7, 8, 9), start=0, blocks=(0,))
    assert only(step(scheduler)) == Chunk(sequence_id="a", token_ids=(0,), start=3, blocks=(0,))
    assert only(step(scheduler)) == Chunk(sequence_id="a", token_ids=(3,), start=4, blocks=(0, 1))


def test_a_long_prompt_is_computed_in_chunks_of_which_the_last_samples() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 10)
    chunks = [only(step(scheduler, 4)) for _ in range(4)]
    assert [(chunk.start, len(chunk.token_ids), chunk.samples) for chunk in chunks] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
        (10, 1, True),
    ]
    assert [len(chunk.blocks) for chunk in chunks] == [1, 2, 3, 3]


def test_answers_go_on_while_prompts_share_the_tokens_of_a_step() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 2)
    step(scheduler)
    add(scheduler, "b", 5)
    add(scheduler, "c", 5)
    assert sizes(step(scheduler, 3)) == {"a": 1, "b": 3}
    assert sizes(step(scheduler, 3)) == {"a": 1, "b": 2, "c": 1}
    output = step(scheduler, 3)
    assert sizes(output) == {"a": 1, "b": 1, "c": 3}
    assert [len(chunk.token_ids) for chunk in output.chunks] == [1, 1, 3], "single tokens come first"


def test_prompts_of_a_single_token_come_first_too() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 5)
    add(scheduler, "b", 1)
    assert [*sizes(step(scheduler))] == ["b", "a"]


def test_prompts_go_on_by_urgency() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 9)
    step(scheduler, 2)
    add(scheduler, "b", 4, priority=-1)
    assert sizes(step(scheduler, 8)) == {"a": 7, "b": 1}
    assert sizes(step(scheduler, 2)) == {"a": 1, "b": 2}


def test_sequences_with_a_limit_share_it_in_a_step() -> None:
    scheduler = scheduler_with()
    for name in "ab":
        add(scheduler, name, 5, max_chunk=2)
    add(scheduler, "c", 3)
    assert sizes(step(scheduler, 9)) == {"a": 2}  # nobody is admitted ahead of b
    assert sizes(step(scheduler, 9)) == {"a": 2}
    assert sizes(step(scheduler, 9)) == {"a": 1, "b": 2, "c": 3}  # a's last one is no chunk


def test_what_is_computed_in_one_step_is_never_cut() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 5)
    add(scheduler, "b", 6, in_one_step=True)
    assert sizes(step(scheduler, 5)) == {"a": 5}
    assert sizes(step(scheduler, 2)) == {"a": 1, "b": 6}


def test_an_encoders_prompt_counts_as_prompt_tokens() -> None:
    scheduler = scheduler_with()
    for name in "abc":
        add(scheduler, name, 1, num_context_tokens=4)
    assert sizes(step(scheduler, 8)) == {"a": 1, "b": 1}
    assert sizes(step(scheduler, 8)) == {"a": 1, "b": 1, "c": 1}


def test_no_chunk_is_longer_than_its_sequence_allows() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 5, max_chunk=2)
    add(scheduler, "b", 5)
    assert sizes(step(scheduler)) == {"a": 2, "b": 5}
    assert sizes(step(scheduler)) == {"a": 2, "b": 1}


def test_a_chunk_that_failed_is_scheduled_again() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 6)
    failed = scheduler.schedule(4)
    assert scheduler.schedule(4) == failed
    scheduler.complete(failed.chunks)
    assert only(scheduler.schedule(4)).start == 4


def test_a_chunk_is_completed_once() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 6)
    output = scheduler.schedule(4)
    scheduler.complete(output.chunks)
    with pytest.raises(AssertionError, match="not what comes next"):
        scheduler.complete(output.chunks)


def test_several_tokens_may_be_appended_before_a_step_computes_them_together() -> None:
    scheduler = scheduler_with()
    add(scheduler, "a", 3)
    step(scheduler)
    scheduler.append("a", 42)
    chunk = only(step(scheduler))
    assert (chunk.token_ids, chunk.start) == ((0, 42), 3)


def test_one_answer_more_than_places_and_queue_is_refused_and_changes_nothing() -> None:
    scheduler = scheduler_with(max_running=2, max_waiting=1)
    add(scheduler, "a")
    add(scheduler, "b")
    step(scheduler)
    with pytest.raises(EngineOverloaded, match="2 requests run and 0 wait, the limit is 3") as caught:
        add(scheduler, "x", num_branches=2)
    assert caught.value.retry_after_s > 0
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 0)
    add(scheduler, "x")
    with pytest.raises(EngineOverloaded):
        add(scheduler, "y")
    scheduler.finish("a")
    add(scheduler, "y")
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)


def test_a_sequence_that_would_never_fit_is_not_taken() -> None:
    scheduler = scheduler_with(num_blocks=2)
    with pytest.raises(AssertionError, match="does not fit"):
        add(scheduler, "a", 9)
    with pytest.raises(AssertionError, match="does not fit"):
        add(scheduler, "a", 4, num_context_tokens=1, num_fixed_blocks=1)
    assert scheduler.num_waiting == 0


def test_a_sequence_may_fill_all_blocks_but_not_outgrow_them() -> None:
    scheduler = scheduler_with(num_blocks=2)
    add(scheduler, "a", 7)
    step(scheduler)
    assert only(step(scheduler)).blocks == (0, 1)
    with pytest.raises(AssertionError, match="outgrown"):
        scheduler.schedule(ANY)


def test_sequences_may_be_finished_while_they_wait_or_run() -> None:
    scheduler = scheduler_with(max_running=2)
    for name in "abcd":
        add(scheduler, name)
    assert sizes(step(scheduler)) == {"a": 1, "b": 1}
    scheduler.finish("c")
    scheduler.finish("b")
    assert sizes(step(scheduler)) == {"a": 1, "d": 1}
    scheduler.finish("a")
    scheduler.finish("d")
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_used_blocks) == (0, 0, 0)


def test_lower_priorities_come_first_and_in_each_who_came_first() -> None:
    scheduler = scheduler_with(max_running=1)
    for name, priority in {"a": 1, "b": 0, "c": 1, "d": 0, "e": -1}.items():
        add(scheduler, name, priority=priority)
    order = ""
    for _ in range(5):
        order += (name := only(step(scheduler)).sequence_id)
        scheduler.finish(name)
    assert order == "ebdac"


def test_who_does_not_fit_now_waits_and_those_behind_wait_with_it() -> None:
    scheduler = scheduler_with(num_blocks=4)
    for name, num_tokens in {"a": 8, "b": 7, "c": 1}.items():
        add(scheduler, name, num_tokens)
    assert sizes(step(scheduler)) == {"a": 8}, "b needs two blocks, and a has one for its next token"
    scheduler.finish("a")
    assert sizes(step(scheduler)) == {"b": 7, "c": 1}


def test_a_waiting_sequence_that_leaves_lets_the_next_in() -> None:
    scheduler = scheduler_with(num_blocks=4)
    for name, num_tokens in {"a": 8, "b": 7, "c": 3}.items():
        add(scheduler, name, num_tokens)
    step(scheduler)
    scheduler.finish("b")
    assert sizes(step(scheduler)) == {"a": 1, "c": 3}


def test_who_was_passed_over_often_enough_is_admitted_next() -> None:
    scheduler = scheduler_with(max_running=1, max_passed_over=2)
    add(scheduler, "z", priority=9)
    order = ""
    for name in "abcd":
        add(scheduler, name)
        order += (admitted := only(step(scheduler)).sequence_id)
        scheduler.finish(admitted)
    assert order == "abzc"


def test_who_ran_out_of_patience_gives_way_to_nobody_who_came_later() -> None:
    scheduler = scheduler_with(num_blocks=4, max_passed_over=1, max_running=2)
    add(scheduler, "z", 7, priority=9)
    add(scheduler, "a", 7)
    add(scheduler, "b", 7)
    assert sizes(step(scheduler)) == {"a": 7, "z": 7}
    step(scheduler)
    assert step(scheduler).preempted == ("a",)


def test_a_choice_among_equals_may_be_left_to_others() -> None:
    asked: list[list[str]] = []

    def last(waiting: Tokens, running: Tokens) -> str | None:
        asked.append(list(waiting))
        return asked[-1][-1]

    scheduler = scheduler_with(max_running=1, num_blocks=4, prefer=last)
    add(scheduler, "a", 1)
    add(scheduler, "b", 16, priority=0)
    add(scheduler, "c", 1)
    add(scheduler, "d", 1, priority=1)
    assert sizes(step(scheduler)) == {"c": 1}
    assert asked == [["a", "b", "c"]], "d is of another class"


def test_only_who_could_be_admitted_now_is_offered_for_choice() -> None:
    asked: list[list[str]] = []

    def first(waiting: Tokens, running: Tokens) -> str | None:
        asked.append(list(waiting))
        return None

    scheduler = scheduler_with(num_blocks=4, prefer=first)
    for name, num_tokens in {"a": 7, "b": 14, "c": 3}.items():
        add(scheduler, name, num_tokens)
    add(scheduler, "d", 3)
    assert sizes(step(scheduler)) == {"a": 7}
    assert asked == [["a", "b", "c", "d"]], "b, the first of those left, does not fit"
    scheduler.finish("b")
    step(scheduler)
    assert asked[1:] == [["c", "d"]], "there is no choice between d and nobody"


def test_a_choice_passes_over_nobody_more_often_than_the_limit() -> None:
    scheduler = scheduler_with(max_running=1, max_passed_over=2, prefer=lambda waiting, _: list(waiting)[-1])
    order = ""
    for name in "abcdef":
        add(scheduler, name)
    for _ in range(6):
        order += (admitted := only(step(scheduler)).sequence_id)
        scheduler.finish(admitted)
    assert order == "feabcd"
    assert scheduler.num_preferred == 2


def test_who_chooses_is_told_the_tokens_of_those_that_wait_and_run() -> None:
    told: list[tuple[dict[str, list[int]], dict[str, list[int]]]] = []

    def note(waiting: Tokens, running: Tokens) -> str | None:
        told.append(({k: list(v) for k, v in waiting.items()}, {k: list(v) for k, v in running.items()}))
        return None

    scheduler = scheduler_with(max_running=2, prefer=note)
    add(scheduler, "a", 2, token_ids=(5, 6))
    step(scheduler)
    add(scheduler, "b", 1, token_ids=(7,))
    add(scheduler, "c", 1, token_ids=(8,))
    step(scheduler)
    assert told == [({"b": [7], "c": [8]}, {"a": [5, 6, 0]})]


def test_only_the_first_of_those_that_wait_are_offered_for_choice() -> None:
    asked: list[list[str]] = []

    def last(waiting: Tokens, running: Tokens) -> str | None:
        asked.append(list(waiting))
        return asked[-1][-1]

    scheduler = scheduler_with(max_running=1, max_waiting=20, num_blocks=4, prefer=last)
    names = [chr(ord("a") + number) for number in range(MOST_CHOICES + 3)]
    for name in names:
        add(scheduler, name)
    step(scheduler)
    assert asked == [names[:MOST_CHOICES]]


def test_who_would_get_none_of_the_step_is_neither_preferred_nor_counted() -> None:
    scheduler = scheduler_with(prefer=lambda waiting, _: list(waiting)[-1])
    add(scheduler, "a", 9, max_chunk=3)
    step(scheduler)
    add(scheduler, "b", 1)
    add(scheduler, "c", 9, max_chunk=3)
    assert sizes(step(scheduler)) == {"a": 3, "b": 1}
    assert scheduler.num_preferred == 0
