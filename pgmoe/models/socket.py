"""Where a model takes its routed experts: one socket for each MoE layer.

A family either keeps all experts of a layer in fused tensors of one module (transformers' experts interface,
some fifty families), or names every expert's tensors apart (Switch, NLLB-MoE, whose sparse blocks are ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import SiLUActivation

from pgmoe.errors import UnsupportedModel
from pgmoe.layout import ExpertFFN

_CANONICAL = {
    "gate_up_proj": "up", "up_proj": "up", "down_proj": "down",
    "gate_up_proj_bias": "up_bias", "up_proj_bias": "up_bias", "down_proj_bias": "down_bias",
}  # fmt: skip


@dataclass(frozen=True)
class ExpertSocket:
    """One MoE layer's place for experts. `module.routed_experts` is what the layer calls."""

    name: str
    """Module path of the experts."""
    module: nn.Module
    num_experts: int
    top_k: int
    shapes: dict[str, tuple[int, ...]]
    """Of one expert, by tensor name (`up`, `down`, `up_bias`, `down_bias`), in blob order."""
    keys: dict[str, str]
    """State-dict key by tensor name; has a `{}` for the expert index unless fused."""
    ffn: ExpertFFN

    @property
    def block(self) -> str:
        """Module path of the MoE block."""
        return self.name.rpartition(".")[0]

    @property
    def fused(self) -> bool:
        """Whether one tensor holds all experts, the expert index first."""
        return not any("{}" in key for key in self.keys.values())


def is_fused(module: nn.Module) -> bool:
    """Whether this is an experts module on transformers' experts interface."""
    return all(hasattr(module, flag) for flag in ("has_gate", "is_transposed", "is_concatenated", "has_bias"))


def empty_fused(model: nn.Module) -> None:
    """Take the parameters out of every fused experts module: none is allocated, loaded or initialised.

    Their shapes stay behind as `module.expert_shapes`. Raises UnsupportedModel for an unknown parameter.
    """
    for name, module in model.named_modules():
        if not is_fused(module) or hasattr(module, "expert_shapes"):
            continue
        shapes: dict[str, tuple[int, ...]] = {}
        for parameter, value in list(module.named_parameters(recurse=False)):
            if parameter not in _CANONICAL:
                raise UnsupportedModel(f"{name}: experts with a parameter {parameter!r} are not served")
            shapes[parameter] = tuple(value.shape)
            setattr(module, parameter, None)
        module.expert_shapes = shapes
        module._is_hf_initialized = True  # or transformers would initialise None


def fused_sockets(model: nn.Module) -> list[ExpertSocket]:
    """The sockets of all fused experts modules, in execution order."""
    return [_fused_socket(model, n, m) for n, m in model.named_modules() if is_fused(m)]


def _fused_socket(model: nn.Module, name: str, module: nn.Module) -> ExpertSocket:
    fused: dict[str, tuple[int, ...]] = module.expert_shapes  # type: ignore[assignment]
    ffn = ExpertFFN(
        activation=module._apply_gate if module.has_gate else module.act_fn,  # type: ignore[arg-type]
        swiglu=_is_swiglu(module),
        transposed=bool(module.is_transposed),
        post_norm=module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,  # type: ignore[arg-type]
    )
    return ExpertSocket(
        name=name,
        module=module,
        num_experts=next(iter(fused.values()))[0],
        top_k=_top_k(model, name),
        shapes={_CANONICAL[p]: shape[1:] for p, shape in fused.items()},
        keys={_CANONICAL[p]: f"{name}.{p}" for p in fused},
        ffn=ffn,
    )


def _is_swiglu(module: nn.Module) -> bool:
    """Whether silu of the first half times the second is what lies between the products: it is tried out."""
    if not module.has_gate or not isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation):
        return False
    row = torch.linspace(-1, 1, 16)
    u = torch.cat([scale * row for scale in (1, -1, 30, -30, 1e6, -1e6)]).view(-1, 16)  # past any limit
    gate, up = u.chunk(2, dim=-1)
    return torch.equal(module._apply_gate(u), nn.functional.silu(gate) * up)  # type: ignore[operator]


def _top_k(model: nn.Module, experts: str) -> int:
    block = model.get_submodule(experts.rpartition(".")[0])
    for router in (block.__dict__.get("router"), *block.children()):
        if isinstance(getattr(router, "top_k", None), int):
            return int(router.top_k)  # type: ignore[union-attr,arg-type]
    top_k = getattr(model.config, "num_experts_per_tok", None)
    if not isinstance(top_k, int):
        raise UnsupportedModel(f"{experts}: cannot tell how many experts a token uses")
    return top_k
