"""Eviction policies by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pgmoe.errors import ConfigError
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.experts.policies.lfu import LeastFrequentlyUsed
from pgmoe.experts.policies.lifo import LastInFirstOut
from pgmoe.experts.policies.lru import LeastRecentlyUsed
from pgmoe.experts.policies.prospect import Prospect

POLICIES: dict[str, Callable[[Sequence[int]], EvictionPolicy]] = {
    "lfu": lambda _: LeastFrequentlyUsed(),
    "lifo": lambda _: LastInFirstOut(),
    "lru": lambda _: LeastRecentlyUsed(),
    "prospect": Prospect,
}
"""Each is made from the number of experts in each MoE layer."""


def check_policy(name: str) -> None:
    """Raise ConfigError for an unknown name."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} is unknown; choose one of {', '.join(sorted(POLICIES))}")


def make_policy(name: str, experts_per_layer: Sequence[int]) -> EvictionPolicy:
    """A new policy of this name for a model of this shape. Raises ConfigError for an unknown one."""
    check_policy(name)
    return POLICIES[name](experts_per_layer)
