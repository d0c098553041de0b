"""Pre-gated routing: the gate that selects a block's experts reads the input of a block before it.

Hwang et al., "Pre-gated MoE" (arXiv 2308.12066), section 4.1. With level L, the gate in block i selects for
block i + L; the first L blocks of a stack have a gate of their own besides, the last L have none to give. So
there are as many gates as blocks, and each is stored under the block that it selects for: a checkpoint keeps
the names and shapes of its family, and only which input a gate reads is new. The weight of an expert's output
is what its family makes of that gate's probabilities.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgmoe.errors import UnsupportedModel
from pgmoe.models.early import EarlyBlock
from pgmoe.models.mixed import mixed, unmixed
from pgmoe.models.moe_blocks import MoEBlock, moe_blocks
from pgmoe.pre_gating import PreGating


class GateChain:
    """The gates of one stack, each asked `level` blocks before the one whose experts it selects.

    A selection is given up when its block has taken it; in training it stays until the next forward pass, as
    a block may be computed again there (gradient checkpointing).
    """

    def __init__(self, blocks: Sequence[str], routers: Sequence[PreGatedRouter], level: int) -> None:
        """`blocks`: their module paths, in execution order; `routers`: of each."""
        self.blocks = tuple(blocks)
        self._routers = tuple(routers)
        self._level = level
        self._selected: list[Any] = [None] * len(self._routers)
        self._shapes: list[torch.Size | None] = [None] * len(self._routers)

    def __getstate__(self) -> dict[str, Any]:
        """Without selections: they are of a pass under way."""
        none = [None] * len(self._routers)
        return {**self.__dict__, "_selected": none, "_shapes": list(none)}

    def route(self, block: int, hidden: Tensor) -> Any:
        """What the router of `block` gives, as its family has it. Selects for block + level by the way.

        hidden: the block's input, (..., D).
        """
        if block < self._level:
            self._select(block, hidden)
        elif self._shapes[block] != hidden.shape:
            raise RuntimeError(
                f"block {block} of a pre-gated stack got {tuple(hidden.shape)}, block {block - self._level} "
                f"selected for {self._shapes[block]}: run whole stacks"
            )
        if block + self._level < len(self._routers):
            self._select(block + self._level, hidden)
        given = self._selected[block]
        if not self._routers[block].training:
            self._selected[block] = self._shapes[block] = None
        return given

    def selected(self, block: int) -> Tensor:
        """The experts that `block` will use in the pass under way, before its turn: (..., K) int64."""
        for part in self._selected[block]:
            if isinstance(part, Tensor) and part.dtype == torch.int64:
                return part
        raise UnsupportedModel(f"{type(self._routers[block]).__name__} gives no expert ids")

    def _select(self, block: int, hidden: Tensor) -> None:
        self._selected[block] = self._routers[block].ask(hidden)
        self._shapes[block] = hidden.shape


class PreGatedRouter(nn.Module):
    """Mixed into a family's router: its own forward is asked early, and by the chain alone."""

    chain: GateChain
    block: int

    def forward(self, hidden: Tensor) -> Any:
        """See GateChain.route."""
        return self.chain.route(self.block, hidden)

    def ask(self, hidden: Tensor) -> Any:
        """The family's router."""
        return super().forward(hidden)


Selection = Callable[[Tensor], Tensor]
"""From one block's expert input (N, D) to the experts (N, K) int64 that its gate has just selected."""


@dataclass(frozen=True)
class PreGates:
    """The chains of a pre-gated model."""

    level: int
    """MoE blocks from a gate to the one that it selects for."""
    chains: tuple[GateChain, ...]

    def selection_from(self, block: str) -> Selection | None:
        """What the gate in this block (module path) selects for a later one; None where it selects none."""
        for chain in self.chains:
            if block in chain.blocks[: -self.level]:
                later = chain.blocks.index(block) + self.level
                return lambda hidden_ND: chain.selected(later).reshape(len(hidden_ND), -1)
        return None


def pre_gate(model: PreTrainedModel) -> PreGates | None:
    """Make a model route as the `pgmoe` section of its config says; None, and no change, where it has none.

    Call after `from_pretrained`; calling again changes nothing. While it trains, one backward pass has to
    follow each forward pass where activations are computed again; routers' classes are of this process, so
    save it by `save_pretrained`. Raises UnsupportedModel where this is no
    model to be pre-gated, CorruptCheckpoint where it is not the one that the section describes.
    """
    pre_gating = PreGating.of(model.config.to_dict())
    if pre_gating is None:
        return None
    stacks = pre_gated_stacks(model, pre_gating)
    pre_gating.check({b.router_name: r.name for b, r in gate_map(stacks, pre_gating.level).items()})
    return PreGates(pre_gating.level, tuple(_chain(blocks, pre_gating.level) for blocks in stacks))


def pre_gated_stacks(model: PreTrainedModel, pre_gating: PreGating) -> list[list[MoEBlock]]:
    """The stacks within the scope that have enough blocks. Raises UnsupportedModel."""
    if any(isinstance(module, EarlyBlock) for module in model.modules()):
        raise UnsupportedModel(
            f"{type(model).__name__}: its routers read their layer's input already, before attention, and "
            "their selections are fetched ahead as they are; serve it without pre-gating"
        )
    stacks = [b for stack, b in moe_blocks(model).items() if pre_gating.covers(_kind(model, stack))]
    if not stacks:
        raise UnsupportedModel(f"{type(model).__name__} has no MoE blocks in its {pre_gating.scope}")
    for blocks in stacks:
        _check_alike(blocks)
        if pre_gating.level >= len(blocks):
            raise UnsupportedModel(
                f"level {pre_gating.level}: {blocks[0].stack} has {len(blocks)} MoE blocks; "
                f"give at most {len(blocks) - 1}"
            )
    return stacks


def gate_map(stacks: Sequence[Sequence[MoEBlock]], level: int) -> dict[MoEBlock, MoEBlock]:
    """For each block the one whose input its gate reads."""
    return {
        block: blocks[i - level] if i >= level else block
        for blocks in stacks
        for i, block in enumerate(blocks)
    }


def swap_family(router: nn.Module, make: Callable[[Any], Any]) -> None:
    """Give a router another class than its family's, made of that; if it is pre-gated, it stays so."""
    made = make(unmixed(router))
    router.__class__ = mixed("PreGated", PreGatedRouter, made) if isinstance(router, PreGatedRouter) else made


def _kind(model: PreTrainedModel, stack: str) -> str:
    return "encoder" if model.config.is_encoder_decoder and "encoder" in stack.split(".") else "decoder"


def _check_alike(blocks: Sequence[MoEBlock]) -> None:
    """One gate can stand in for another only where both choose as many of as many."""
    for block in blocks:
        inputs = list(inspect.signature(type(block.router).forward).parameters)[1:]
        if len(inputs) != 1:
            raise UnsupportedModel(
                f"{block.router_name} takes {', '.join(inputs)}; only routers that take the block's input "
                "alone can be asked ahead"
            )
    if len({_kind_of(block.router) for block in blocks}) > 1:
        raise UnsupportedModel(
            f"{blocks[0].stack}: its MoE blocks differ in their routers, experts or top-k; "
            "only stacks of equal blocks can be pre-gated"
        )


def _kind_of(router: nn.Module) -> tuple[str, int, tuple[torch.Size, ...]]:
    top_k = getattr(router, "top_k", 1)
    return type(router).__name__, top_k, tuple(parameter.shape for parameter in router.parameters())


def _chain(blocks: Sequence[MoEBlock], level: int) -> GateChain:
    if isinstance(first := blocks[0].router, PreGatedRouter):
        return first.chain
    for block in blocks:
        if "forward" in block.router.__dict__:
            raise UnsupportedModel(
                f"{block.router_name}: its forward was replaced (accelerate does so with a device_map over "
                "several devices); load the model onto one device first"
            )
    for block in blocks:
        kind: Any = type(block.router)
        block.router.__class__ = mixed("PreGated", PreGatedRouter, kind)
    routers = [cast(PreGatedRouter, block.router) for block in blocks]
    chain = GateChain([block.name for block in blocks], routers, level)
    for index, router in enumerate(routers):
        router.chain, router.block = chain, index
    return chain
