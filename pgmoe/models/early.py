"""MoE blocks that choose their experts before their layer's attention, and say so at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pgmoe.models.socket import ExpertSocket

Announce = Callable[[Tensor], None]
"""Told which experts a layer has chosen, (N, K) int64, before its attention; these very ids are what its
experts are called with later in the same pass."""


@runtime_checkable
class EarlyBlock(Protocol):
    """An MoE block with such a router."""

    announce: Announce | None
    """Whom the block tells; nobody where None."""


def early_blocks(model: nn.Module, sockets: Sequence[ExpertSocket]) -> dict[int, EarlyBlock]:
    """Such blocks by the index of their socket; none in most models."""
    blocks = {index: model.get_submodule(socket.block) for index, socket in enumerate(sockets)}
    return {index: block for index, block in blocks.items() if isinstance(block, EarlyBlock)}
