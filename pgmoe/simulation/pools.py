"""How slots are shared among layers: one pool for all, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pgmoe.errors import ConfigError
from pgmoe.simulation.demand import Demand, of_layer
from pgmoe.units import parse_bytes

Pools = Literal["global", "per-layer"]
Misses = Callable[[Sequence[Demand], int], int]
"""From demands and slots to the misses of one pool."""


def parse_slots(budget: str, num_experts: int) -> int:
    """`25%` of the experts, rounded down, or a number of slots; all experts at most.

    Raises ConfigError for anything else, and where not one slot comes of it.
    """
    if budget.strip().endswith("%"):
        slots = parse_bytes(budget, whole_bytes=num_experts)
    else:
        try:
            slots = int(budget)
        except ValueError:
            raise ConfigError(
                f"budget {budget!r} is neither a share nor a number of slots; write for example 25% or 64"
            ) from None
    if slots < 1:
        raise ConfigError(f"budget {budget!r} is not one slot for {num_experts} experts; give more")
    return min(slots, num_experts)


def count_misses(
    wanted: Sequence[Demand], num_slots: int, num_layers: int, pools: Pools, misses: Misses
) -> int:
    """Misses of all pools together; slots that do not divide evenly go to the first layers.

    Raises ConfigError where a layer would have no slot.
    """
    if pools == "global":
        return misses(wanted, num_slots)
    if num_slots < num_layers:
        raise ConfigError(
            f"{num_slots} slots are not one for each of {num_layers} layers; "
            "give a larger budget, or one pool for all layers"
        )
    each, more = divmod(num_slots, num_layers)
    return sum(misses(of_layer(layer, wanted), each + (layer < more)) for layer in range(num_layers))
