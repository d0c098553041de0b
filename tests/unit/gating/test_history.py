from __future__ import annotations

from collections.abc import Iterable

from pgmoe.gating.history import Context, Histories

TOKEN = [[0]]


def run(histories: Histories, sequence: str, layers: Iterable[int]) -> list[Context | None]:
    histories.begin([sequence])
    found = []
    for layer in layers:
        histories.add(layer, TOKEN)
        found.append(histories.context())
    return found


def coming(contexts: list[Context | None]) -> list[int | None]:
    return [None if c is None else c.coming for c in contexts]


def test_the_order_of_layers_is_learned_and_closes_over_the_end_of_a_step() -> None:
    histories = Histories(3, 4)
    assert coming(run(histories, "a", (0, 1, 2))) == [None, None, None]
    assert coming(run(histories, "a", (0, 1, 2))) == [1, 2, 0]


def test_an_encoder_comes_once_and_the_decoder_again_and_again() -> None:
    histories = Histories(3, 4)
    run(histories, "a", (0, 1, 2, 3))
    run(histories, "a", (2, 3))
    assert coming(run(histories, "a", (2, 3))) == [3, 2]
    assert coming(run(histories, "b", (0, 1, 2, 3))) == [1, 2, 3, 2]


def newest_step(context: Context | None) -> int:
    """Which pass the history comes from; the unnamed sequence's is the first."""
    assert context is not None
    return context.seen[0].step


def test_the_last_layer_of_a_step_tells_of_the_sequence_that_ran_next_the_last_time() -> None:
    histories = Histories(3, 4)
    for sequence in "abab":  # passes 2 to 5
        found = run(histories, sequence, (0, 1))
    assert found[0] is not None
    assert not found[0].next_step
    assert newest_step(found[0]) == 5
    assert found[1] is not None
    assert found[1].next_step
    assert newest_step(found[1]) == 4  # the one of a
    assert newest_step(run(histories, "b", (0, 1))[1]) == 6  # a did not come, so b follows itself


def test_a_step_that_broke_off_is_no_lasting_end() -> None:
    histories = Histories(3, 4)
    run(histories, "a", (0, 1, 2))
    run(histories, "a", (0, 1))
    run(histories, "a", (0, 1, 2))
    found = run(histories, "a", (0, 1, 2))
    assert coming(found) == [1, 2, 0]
    assert [c is not None and c.next_step for c in found] == [False, False, True]


def test_sequences_keep_their_own_past_and_the_longest_paused_is_forgotten() -> None:
    histories = Histories(3, 2)
    run(histories, "a", (0, 1))
    run(histories, "b", (0,))
    histories.begin(["a"])
    assert [s.layer for s in histories.add(0, TOKEN)] == [0, 1, 0]
    run(histories, "c", (0,))
    histories.begin(["b"])
    assert [s.layer for s in histories.add(0, TOKEN)] == [0]
