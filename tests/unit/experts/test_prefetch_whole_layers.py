"""The prefetcher in passes of many tokens, which use nearly all of a layer."""

from __future__ import annotations

import pytest

from pgmoe.experts.limiter import PrefetchLimiter
from pgmoe.experts.prefetcher import Prefetcher
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.experts.whole_layers import WholeLayers
from pgmoe.layout import ExpertId
from tests.support.prefetching import Layers, Rig, exact, guess


def whole_rig(layers: Layers, store: DiskStore, bandwidth: float, **gating: bool) -> Rig:
    """A layer takes a second, and the link carries so many bytes in it."""
    rig = Rig(layers, store, 8, **gating)
    rig.limiter = PrefetchLimiter(bandwidth)
    rig.limiter.observe_layer(1.0, 0.0)
    num_experts, top_k = zip(*((layer.num_experts, layer.top_k) for layer in layers), strict=True)
    whole = WholeLayers(num_experts, top_k, rig.size)
    parts = rig.parts
    rig.prefetcher = Prefetcher(rig.gating, parts.pool, rig.limiter, rig.trust, rig.size, parts.stats, whole)
    return rig


def test_the_next_layer_is_fetched_whole_for_so_many_tokens_that_all_of_it_will_be_used(
    layers: Layers, store: DiskStore
) -> None:
    rig = whole_rig(layers, store, 1e6)
    rig.prompt(0, [0, 1] * 20, guess(1, 3))
    assert rig.coming() == {ExpertId(1, e) for e in range(layers[1].num_experts)}
    assert rig.gating.asked == 0


def test_a_layer_is_chosen_from_where_too_much_would_come_in_vain(layers: Layers, store: DiskStore) -> None:
    rig = whole_rig(layers, store, 1e-3)
    rig.prompt(0, [0, 1, 0, 1], guess(1, 3))
    assert rig.coming() <= {ExpertId(1, 3)}


def test_single_tokens_and_the_last_layer_fetch_nothing_whole(layers: Layers, store: DiskStore) -> None:
    rig = whole_rig(layers, store, 1e9)
    rig.layer(0, [0])
    assert not rig.coming()
    rig.prompt(len(layers) - 1, [0, 1] * 20)
    assert not rig.coming()


@pytest.mark.parametrize("gating", [{"exact": True}, {"limited": False}])
def test_nothing_is_fetched_whole_where_selections_are_known(
    layers: Layers, store: DiskStore, gating: dict[str, bool]
) -> None:
    rig = whole_rig(layers, store, 1e9, **gating)
    rig.prompt(0, [0, 1] * 20, exact(1, 3))
    assert rig.coming() == {ExpertId(1, 3)}


def test_experts_of_the_next_layer_that_are_there_are_not_pushed_out_by_the_others(
    layers: Layers, store: DiskStore
) -> None:
    rig = whole_rig(layers, store, 1e9)
    rig.layer(1, [0, 1])
    rig.settle()
    rig.prompt(0, [0, 1, 2, 3] * 10)
    rig.settle()
    rig.prompt(1, [0, 1, 2, 3] * 10)
    assert rig.stats.misses[1] == 2, "the first two, once"
