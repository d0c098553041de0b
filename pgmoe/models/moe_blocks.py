"""Where a model chooses experts: its MoE blocks, each with a router, whoever holds the experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class MoEBlock:
    """A block that sends tokens to experts."""

    name: str
    """Module path of the block."""
    router_name: str
    """Module path of its router."""
    router: nn.Module

    @property
    def stack(self) -> str:
        """Module path down to the list of layers: encoder and decoder differ in it."""
        return stack_of(self.name)


def stack_of(name: str) -> str:
    """The module path down to the list of layers that a module lies in."""
    parts = name.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit())])


def router_of(block: nn.Module) -> tuple[str, nn.Module] | None:
    """A block's router and the name it has there; None where there is none."""
    for name in _ROUTERS:
        if isinstance(found := getattr(block, name, None), nn.Module):
            return name, found
    return None


def moe_blocks(model: nn.Module) -> dict[str, list[MoEBlock]]:
    """All blocks by their stack, in execution order, of transformers' own model or of one without experts."""
    stacks: dict[str, list[MoEBlock]] = {}
    for block in _blocks(model):
        stacks.setdefault(block.stack, []).append(block)
    return stacks


def _blocks(model: nn.Module) -> Iterator[MoEBlock]:
    for name, module in model.named_modules():
        found = router_of(module)
        if found is not None and _has_experts(module) and any(part.isdigit() for part in name.split(".")):
            yield MoEBlock(name, f"{name}.{found[0]}", found[1])


def _has_experts(block: nn.Module) -> bool:
    """Experts of its own, or a place where an engine plugs them in."""
    return "experts" in block._modules or "routed_experts" in type(block).__annotations__
