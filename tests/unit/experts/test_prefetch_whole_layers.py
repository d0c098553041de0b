"""The prefetcher in passes of many tokens, which use nearly all of a layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.whole_layers import WholeLayers
from pgmoe.layout import ExpertId
from tests.support.expert_files import NUM_EXPERTS, write_layers
from tests.support.prefetching import Rig, exact, guess

MANY = [0, 1] * 20
EVERY = {ExpertId(2, expert) for expert in range(NUM_EXPERTS)}


def whole_rig(
    folder: Path, bandwidth: float, num_slots: int = 3 * NUM_EXPERTS, **gating: bool
) -> tuple[Rig, DiskStore]:
    """Three layers, over a link of this bandwidth; a layer takes what it takes here to do nothing."""
    layers = write_layers(folder, num_layers=3)
    store = DiskStore(layers)
    rig = Rig(layers, store, num_slots, **gating)
    rig.limiter = PrefetchLimiter(bandwidth)
    num_experts, top_k = zip(*((layer.num_experts, layer.top_k) for layer in layers), strict=True)
    whole = WholeLayers(num_experts, top_k, rig.size)
    parts = rig.parts
    rig.prefetcher = Prefetcher(rig.gating, parts.pool, rig.limiter, rig.trust, rig.size, parts.stats, whole)
    return rig, store


def prompt(rig: Rig, *says: object, tokens: list[int] = MANY) -> None:
    """Layers 0 and 1 of a pass; the second says this of layer 2."""
    rig.prompt(0, tokens)
    rig.settle()
    rig.prompt(1, tokens, *says)  # type: ignore[arg-type]


def test_the_next_layer_is_fetched_whole_for_so_many_tokens_that_all_of_it_will_be_used(
    tmp_path: Path,
) -> None:
    rig, store = whole_rig(tmp_path, 1e15)
    prompt(rig, guess(2, 3))
    assert rig.coming() == EVERY
    assert rig.gating.asked == 2, "gatings learn from every layer"
    store.close()


def test_those_that_are_guessed_come_first_where_slots_are_few(tmp_path: Path) -> None:
    rig, store = whole_rig(tmp_path, 1e15, num_slots=5)
    prompt(rig, guess(2, 5, 3))
    assert rig.coming() >= {ExpertId(2, 5), ExpertId(2, 3)}
    assert rig.coming() < EVERY
    store.close()


def test_it_is_fetched_while_guesses_rest(tmp_path: Path) -> None:
    rig, store = whole_rig(tmp_path, 1e15)
    for _ in range(300):
        rig.limiter.observe_layer(1.0, 0.0)
    assert rig.limiter.resting
    prompt(rig, guess(2, 3))
    assert rig.coming() == EVERY
    store.close()


@pytest.mark.parametrize(
    ("bandwidth", "tokens"), [(1e-3, [0, 1] * 4), (1e15, [0, 1])], ids=["too much in vain", "few tokens"]
)
def test_else_it_is_chosen_from(tmp_path: Path, bandwidth: float, tokens: list[int]) -> None:
    rig, store = whole_rig(tmp_path, bandwidth)
    prompt(rig, guess(2, 3), tokens=tokens)
    assert rig.coming() == {ExpertId(2, 3)}
    store.close()


def test_nothing_is_known_of_the_first_layers_time(tmp_path: Path) -> None:
    rig, store = whole_rig(tmp_path, 1e15)
    rig.layer(2, [0])
    rig.settle()
    rig.prompt(0, MANY, guess(1, 3))
    assert rig.coming() == {ExpertId(1, 3)}
    store.close()


def test_what_was_not_looked_at_ahead_may_be_of_another_pass(tmp_path: Path) -> None:
    rig, store = whole_rig(tmp_path, 1e15)
    prompt(rig)
    assert not rig.coming()
    store.close()


@pytest.mark.parametrize("gating", [{"exact": True}, {"limited": False}])
def test_nothing_is_fetched_whole_where_selections_are_known(tmp_path: Path, gating: dict[str, bool]) -> None:
    rig, store = whole_rig(tmp_path, 1e15, **gating)
    prompt(rig, exact(2, 3))
    assert rig.coming() == {ExpertId(2, 3)}
    store.close()


def test_experts_of_the_next_layer_that_are_there_are_not_pushed_out_by_the_others(tmp_path: Path) -> None:
    rig, store = whole_rig(tmp_path, 1e15, num_slots=NUM_EXPERTS + 2)
    rig.layer(2, [0, 1])
    rig.settle()
    prompt(rig, guess(2, 3))
    rig.settle()
    rig.prompt(2, [0, 1] * 20)
    assert rig.stats.misses[2] == 2, "the first two, once"
    store.close()
