"""Eviction policies by name."""

from __future__ import annotations

from collections.abc import Callable

from pgmoe.errors import ConfigError
from pgmoe.experts.policies.base import EvictionPolicy
from pgmoe.experts.policies.lru import LeastRecentlyUsed

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LeastRecentlyUsed}


def make_policy(name: str) -> EvictionPolicy:
    """A new policy of this name. Raises ConfigError for an unknown one."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} is unknown; choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
