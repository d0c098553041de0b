"""The prefetcher, driven layer by layer."""

from __future__ import annotations

from collections import Counter

import pytest

from pgmoe.experts.limiter import LimiterRules
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId
from tests.support.prefetching import RULES, Layers, Rig, exact, guess
from tests.support.transfers import FakeClock


def test_one_guess_at_a_time_where_a_layer_is_shorter_than_a_copy(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 8)
    rig.layer(0, [0], guess(1, 3, 4, 5))
    assert rig.coming() == {ExpertId(1, 3)}
    rig.layer(0, [0], guess(1, 3, 4, 5))
    assert rig.coming() == {ExpertId(1, 3)}  # it is still under way
    rig.settle()
    rig.layer(0, [0], guess(1, 3, 4, 5))
    assert rig.coming() == {ExpertId(1, 4)}


def test_guesses_get_what_the_link_carries_while_a_layer_computes(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 12)
    rig.limiter.observe_layer(2.5 * rig.size, 0.0)  # at a byte per second
    rig.layer(0, [0], guess(1, 0, 1, 2), guess(0, 4))
    assert rig.coming() == {ExpertId(1, 0), ExpertId(1, 1)}


def test_exact_ones_are_ordered_at_once_and_all(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 12)
    rig.layer(0, [0], exact(1, 5, 1, 2, 4), guess(0, 3))
    # The limiter's allowance is a guess's alone, and exact ones under way do not use it up.
    assert rig.coming() == {ExpertId(1, 5), ExpertId(1, 1), ExpertId(1, 2), ExpertId(1, 4), ExpertId(0, 3)}


def test_a_gating_that_is_not_limited_gets_all_it_predicts_and_is_not_judged(
    layers: Layers, store: DiskStore
) -> None:
    rig = Rig(layers, store, 12, limited=False)
    for _ in range(2 * RULES.window):
        rig.layer(0, [0], guess(1, 0, 1, 2, 3, 4, 5))
        rig.settle()
        rig.layer(1, [])
    rig.trust.on = False
    rig.layer(1, [0], guess(0, 1, 2))
    assert rig.coming() == {ExpertId(0, 1), ExpertId(0, 2)}
    assert rig.stats.prefetch_on
    assert rig.stats.prefetch_switches == 0


def test_wrong_guesses_switch_guessing_off_and_no_byte_moves_any_more(
    layers: Layers, store: DiskStore
) -> None:
    rig = Rig(layers, store, 3)
    assert rig.stats.prefetch_on
    rig.err(RULES.window // 2)
    rig.layer(0, [0])
    assert not rig.stats.prefetch_on
    assert rig.stats.prefetch_switches == 1
    moved, asked = rig.stats.links["emulated"].num_bytes["prefetch"], rig.gating.asked
    for _ in range(20):
        rig.layer(0, [0], guess(1, 5))
        rig.layer(1, [4])
    assert rig.stats.links["emulated"].num_bytes["prefetch"] == moved
    assert rig.gating.asked == asked + 40  # statistics go on
    assert not rig.stats.prefetch_on


def test_exact_ones_are_ordered_while_guesses_are_off(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 3, exact=True)
    rig.err(RULES.window // 2)
    for turn in range(10):
        rig.settle()
        assert rig.layer(0, [turn % 3], exact(1, 3 + turn % 3), guess(0, 5)) is not None
        assert rig.coming() == {ExpertId(1, 3 + turn % 3)}
        rig.settle()
        rig.layer(1, [3 + turn % 3])
    assert not rig.trust.on
    assert rig.stats.prefetch_on


def test_exact_ones_are_ordered_while_guesses_rest(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 3, exact=True)
    for _ in range(LimiterRules().num_stalls):
        rig.limiter.observe_layer(100.0, 0.0, lone=True)
    assert rig.limiter.resting
    assert rig.layer(0, [0], exact(1, 5), guess(0, 3)) is not None
    assert rig.coming() == {ExpertId(1, 5)}
    assert rig.stats.prefetch_on


def test_what_a_layer_chose_before_its_turn_is_ordered_at_once_most_tokens_first(
    layers: Layers, store: DiskStore
) -> None:
    rig = Rig(layers, store, 2, exact=True)
    assert rig.prefetcher.wants_selections
    rig.prefetcher.select(1, Counter({5: 1, 3: 3, 4: 2}))
    assert rig.coming() == {ExpertId(1, 3), ExpertId(1, 4)}  # as many as there are slots
    rig.settle()
    rig.layer(1, [3, 4])
    assert (rig.stats.num_hits, rig.stats.num_misses) == (2, 0)


@pytest.mark.parametrize(("predicts", "exact"), [(False, False), (True, False), (False, True)])
def test_a_gating_that_takes_no_exact_selection_wants_to_hear_of_none(
    layers: Layers, store: DiskStore, predicts: bool, exact: bool
) -> None:
    rig = Rig(layers, store, 2, exact=exact)
    rig.gating.predicts = predicts
    assert not rig.prefetcher.wants_selections


def test_only_places_that_are_right_often_enough_are_fetched(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 3)
    for turn in range(RULES.window):
        rig.layer(0, [0], guess(1, turn % 3, 3 + turn % 3))
        rig.settle()
        rig.layer(1, [turn % 3])
        rig.layer(0, [1, 2, 3])  # all slots: what was guessed is missing again
    for _ in range(LimiterRules().num_windows):
        rig.limiter.observe_layer(100.0 * rig.size, 0.0)
    rig.layer(0, [0], guess(1, 0, 3))
    assert rig.coming() == {ExpertId(1, 0)}
    assert rig.stats.prefetch_on


def test_while_off_only_sampled_layers_look_ahead(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 3)
    rig.err(RULES.window // 2)
    before = rig.gating.looked_ahead
    ahead = [rig.layer(layer, [0]) is not None for layer in (0, 1) * 20]
    assert 0 < sum(ahead) < 40
    assert sum(ahead) == rig.gating.looked_ahead - before


def test_right_predictions_scored_without_a_fetch_switch_guessing_on_again(
    layers: Layers, store: DiskStore
) -> None:
    rig = Rig(layers, store, 3)
    rig.err(RULES.window // 2)
    moved, turns = rig.stats.links["emulated"].num_bytes["prefetch"], 0
    while not rig.trust.on and turns < 50:
        turns += 1
        rig.layer(0, [turns % 3], guess(1, 3 + turns % 3))
        assert rig.stats.links["emulated"].num_bytes["prefetch"] == moved
        rig.layer(1, [3 + turns % 3], guess(0, (turns + 1) % 3))
    assert rig.trust.on
    rig.settle()
    rig.layer(0, [0], guess(1, 0))
    assert rig.coming() == {ExpertId(1, 0)}
    assert rig.stats.prefetch_on
    assert rig.stats.prefetch_switches == 2


def test_experts_that_were_there_already_score_nothing(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 12)
    rig.layer(1, [0, 2])
    for _ in range(2 * RULES.window):
        rig.layer(0, [0], guess(1, 0, 2))
        rig.layer(1, [5])
    assert rig.trust.on
    assert rig.stats.prefetch_switches == 0


def test_passes_of_several_tokens_are_not_judged(layers: Layers, store: DiskStore) -> None:
    """They use nearly every expert, so whatever was guessed was right."""
    rig = Rig(layers, store, 3)
    rig.err(RULES.window // 2)
    assert not rig.trust.on
    for turn in range(10 * RULES.window):
        rig.prompt(0, [0, 1, 2], guess(1, 3, 4, 5))
        rig.prompt(1, [3, 4, 5], guess(0, 0, 1, 2))
        rig.layer(0, [turn % 3], guess(1, 3, 4, 5))
        rig.prompt(1, [3, 4, 5])  # what a single token's guess says is not judged by these, either
    assert not rig.trust.on
    assert rig.stats.prefetch_switches == 1


def test_a_prompts_guesses_are_fetched_whatever_their_place(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 12)
    for _ in range(LimiterRules().num_windows):
        rig.limiter.observe_layer(100.0 * rig.size, 0.0)
    rig.prompt(0, [0, 1, 2], guess(1, 3, 4, 5))
    assert rig.coming() == {ExpertId(1, 3), ExpertId(1, 4), ExpertId(1, 5)}


def test_the_time_between_two_passes_is_no_computing(
    layers: Layers, store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that had nothing to do for a while has not computed all that time without waiting."""
    rig = Rig(layers, store, 12)
    now = FakeClock()
    monkeypatch.setattr("pgmoe.experts.prefetcher.time.perf_counter", lambda: now.time)
    for _ in range(LimiterRules().num_stalls):
        rig.layer(0, [0])
        now.time += 1.0
        rig.stats.layer_stall_s[0] += 0.5
        rig.layer(1, [0])
        now.time += 1000.0
    assert rig.limiter.window_s == 0.5
    assert not rig.limiter.resting


def test_a_gating_that_predicts_nothing_is_asked_nothing(layers: Layers, store: DiskStore) -> None:
    rig = Rig(layers, store, 12)
    rig.gating.predicts = False
    assert rig.layer(0, [0], guess(1, 0)) is None
    assert (rig.gating.asked, rig.gating.looked_ahead) == (0, 0)
    assert rig.coming() == set()
