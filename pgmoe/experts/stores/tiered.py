"""Some experts in host memory, the others on disk. Which ones is settled at the start."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pgmoe.experts.stores.base import ExpertStore, Tier
from pgmoe.experts.stores.host import HostStore
from pgmoe.layout import ExpertId, ExpertLayer


class TieredStore:
    """Each expert from `host` if it is held there, else from `disk`; owns both. See ExpertStore."""

    tiers: frozenset[Tier] = frozenset({"disk", "host"})

    def __init__(self, host: HostStore, disk: ExpertStore) -> None:
        self._host = host
        self._disk = disk

    def tier_of(self, expert: ExpertId) -> Tier:
        """As the placement has it."""
        return self._store_of(expert).tier_of(expert)

    def starts(self, expert: ExpertId) -> dict[str, int]:
        """As in the store that has it."""
        return self._store_of(expert).starts(expert)

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        """From the store that has it."""
        return self._store_of(expert).read(expert, slot)

    def close(self) -> None:
        """Close both."""
        self._host.close()
        self._disk.close()

    def _store_of(self, expert: ExpertId) -> ExpertStore:
        return self._host if expert in self._host else self._disk


def spread_evenly(layers: Sequence[ExpertLayer], count: int) -> list[ExpertId]:
    """`count` of all experts, the same share of every layer as nearly as whole experts allow."""
    experts = [ExpertId(i, e) for i, layer in enumerate(layers) for e in range(layer.num_experts)]
    assert count <= len(experts), count
    by_share = sorted(experts, key=lambda x: (x.expert + 1) / layers[x.layer].num_experts)
    return sorted(by_share[:count])
