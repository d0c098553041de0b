"""Trials of a module without its parts: others stand for them, and tell how they were called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pgmoe.models.mixed import unmixed


class StandIn(nn.Module):
    """Gives what a function makes of its input, and keeps what it was called with.

    Who asks takes it for an instance of the part's own class, that of its family.
    """

    def __init__(self, part: nn.Module, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._kind = unmixed(part)
        self._give = give

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The part's, not its own."""
        return self.__dict__.get("_kind", StandIn)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        """What the function makes of hidden_states."""
        self.calls.append([bits(hidden_states), *map(bits, args), kwargs])
        return self._give(hidden_states)


@contextmanager
def standing_in(module: Any, parts: dict[str, StandIn]) -> Iterator[None]:
    """These stand for the module's parts of their names meanwhile."""
    before = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


def trial_tokens(width: int) -> Tensor:
    """(1, 3, width) bfloat16: tokens to try out, of three sizes."""
    sizes = (1, 2), (-30, 3), (1e-3, 7)
    rows = [size * torch.linspace(-1, end, width).sin() for size, end in sizes]
    return torch.stack(rows)[None].bfloat16()


def bits(value: object) -> object:
    """What can be compared to the bit, of a tensor on a CPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.dtype, value.flatten().view(torch.uint8).numpy().tobytes()


def is_hooked(module: nn.Module) -> bool:
    """Whether more happens when it is called than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
