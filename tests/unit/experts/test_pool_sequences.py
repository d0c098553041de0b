from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgmoe.errors import ExpertReadError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId, ExpertLayer
from tests.support.expert_files import NUM_EXPERTS, GatedStore, PoolParts

requests = st.tuples(
    st.integers(0, 1),
    st.lists(st.integers(0, NUM_EXPERTS - 1), unique=True),
    st.integers(0, 8),
    st.booleans(),
    st.integers(1, 7),
)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(1, 8),
    st.lists(requests, max_size=8),
    st.sets(st.tuples(st.integers(0, 1), st.integers(0, 5))),
)
def test_no_sequence_of_leases_failures_and_early_ends_upsets_the_pool(
    layers: tuple[ExpertLayer, ...],
    store: DiskStore,
    num_slots: int,
    leases: list[tuple[int, list[int], int, bool, int]],
    bad: set[tuple[int, int]],
) -> None:
    class Unreliable(GatedStore):
        def enter(self, expert: ExpertId) -> None:
            if failing and tuple(expert) in bad:  # as the loop below says now
                raise ExpertReadError(f"{expert}")

    failing = False
    parts = PoolParts(layers, Unreliable(store), num_slots, num_readers=2)
    for layer, experts, limit, failing, at_once in leases:
        before = parts.resident()
        expect_error = failing and any(
            (layer, e) in bad and ExpertId(layer, e) not in before for e in experts
        )
        taken: list[int] = []
        try:
            with parts.pool.lease(layer, experts, at_once) as lent:
                for batch in lent:
                    assert 1 <= len(batch) <= at_once
                    taken += [expert.index for expert in batch]
                    if len(taken) > limit:
                        break
        except ExpertReadError:
            assert expect_error
        else:
            assert len(taken) > limit or (sorted(taken) == sorted(experts) and not expect_error)
        assert len(taken) == len(set(taken))
        parts.resident()
    failing = False
    for layer in (0, 1):
        assert sorted(parts.take(layer, list(range(NUM_EXPERTS)))) == list(range(NUM_EXPERTS))
    parts.pool.close()
