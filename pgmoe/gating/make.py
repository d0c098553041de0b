"""Gatings by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pgmoe.errors import ConfigError
from pgmoe.gating.on_demand import OnDemand
from pgmoe.gating.oracle import Oracle
from pgmoe.gating.prefetch_all import PrefetchAll
from pgmoe.gating.pregated import Pregated
from pgmoe.gating.speculative import Speculative
from pgmoe.gating.statistical import Statistical
from pgmoe.routing import Gating
from pgmoe.trace import Trace


@dataclass(frozen=True)
class GatingInputs:
    """What gatings are made of."""

    experts_per_layer: Sequence[int]
    ahead: Sequence[Callable[[Tensor], Tensor] | None] = field(default=())
    """For each MoE layer its look-ahead, see Speculative. None at all: nothing is looked ahead."""
    trace: Trace | None = None
    """What the oracle replays."""
    selections: Sequence[Callable[[Tensor], Tensor] | None] = field(default=())
    """Of a pre-gated model for each MoE layer, see Pregated. None at all: the model is not pre-gated."""
    level: int = 0
    """Layers from a selection to the one that it is for."""
    early: Collection[int] = ()
    """Layers that choose their experts before their attention, see Pregated."""

    @property
    def selects(self) -> bool:
        """Whether the model itself selects experts ahead of their turn."""
        return bool(self.selections or self.early)


def _pregated(inputs: GatingInputs) -> Gating:
    if not inputs.selects:
        raise ConfigError(
            "gating 'pregated': this model selects no experts ahead; `pgmoe pregate` makes one that does"
        )
    return Pregated(inputs.selections, inputs.level, inputs.experts_per_layer, inputs.early)


def _speculative(inputs: GatingInputs) -> Gating:
    if inputs.selects:
        raise ConfigError(
            "gating 'speculative' guesses what this model selects itself, ahead of its turn; "
            "choose 'pregated'"
        )
    ahead = inputs.ahead or [None] * len(inputs.experts_per_layer)
    return Speculative(ahead, inputs.experts_per_layer)


def _oracle(inputs: GatingInputs) -> Gating:
    if inputs.trace is None:
        raise ConfigError(
            "gating 'oracle' replays a recorded trace, and none is given; `pgmoe trace` makes one"
        )
    if tuple(inputs.experts_per_layer) != inputs.trace.experts_per_layer:
        raise ConfigError(
            f"gating 'oracle': the trace is of {inputs.trace.model}, whose layers have "
            f"{inputs.trace.experts_per_layer} experts, and this model's have "
            f"{tuple(inputs.experts_per_layer)}; record one of this model with `pgmoe trace`"
        )
    return Oracle(inputs.trace)


AUTO = "auto"
GATINGS: dict[str, Callable[[GatingInputs], Gating]] = {
    "on_demand": lambda _: OnDemand(),
    "prefetch_all": lambda inputs: PrefetchAll(inputs.experts_per_layer),
    "pregated": _pregated,
    "speculative": _speculative,
    "statistical": lambda inputs: Statistical(inputs.experts_per_layer),
    "oracle": _oracle,
}


def check_gating(name: str) -> None:
    """Raise ConfigError for an unknown name."""
    if name not in (AUTO, *GATINGS):
        raise ConfigError(f"gating {name!r} is unknown; choose one of {', '.join([AUTO, *sorted(GATINGS)])}")


def make_gating(name: str, inputs: GatingInputs) -> Gating:
    """A new gating of this name; `auto`: what the model selects ahead where it does, else its guesses.

    Raises ConfigError for an unknown name, and for an oracle without a trace of this model.
    """
    check_gating(name)
    if name == AUTO:
        name = "pregated" if inputs.selects else "speculative"
    return GATINGS[name](inputs)
