"""From a checkpoint to a model with its dense weights on the device and its experts left in the files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import ExpertLayer
from pgmoe.models import moe
from pgmoe.models.byte_plan import plan_bytes
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.families import empty_experts, find_sockets
from pgmoe.models.socket import ExpertSocket


@dataclass(frozen=True)
class LoadedModel:
    """A model without experts, and what is needed to give it some."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    layers: tuple[ExpertLayer, ...]
    """Routed experts in execution order; `layers[i]` belongs to `sockets[i]`."""
    sockets: tuple[ExpertSocket, ...]
    dense_bytes: int

    def plug(self, make: Callable[[int, ExpertLayer], moe.RoutedExperts]) -> None:
        """Give every MoE layer the object that it calls for its routed experts."""
        for index, (socket, layer) in enumerate(zip(self.sockets, self.layers, strict=True)):
            socket.module.routed_experts = make(index, layer)  # type: ignore[assignment]


@dataclass(frozen=True)
class ModelPlan:
    """What a checkpoint holds, found from its headers alone; nothing is loaded."""

    checkpoint: Checkpoint
    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    layers: tuple[ExpertLayer, ...]
    dense_keys: tuple[str, ...]

    @property
    def dense_bytes(self) -> int:
        """Bytes of everything but the experts, as stored."""
        return sum(self.checkpoint.tensors[k].nbytes for k in self.dense_keys)


def read_plan(model: str) -> ModelPlan:
    """Check a checkpoint and find its experts. Raises CheckpointError or one of its kinds."""
    checkpoint = Checkpoint.open(model)
    config = _read_config(checkpoint)
    model_class = _model_class(checkpoint, config)
    with torch.device("meta"):
        whole = model_class(copy.deepcopy(config))  # shapes only; the next line empties a second one
        emptied = without_experts(model_class)(copy.deepcopy(config))
    sockets = find_sockets(emptied)
    if not sockets:
        raise UnsupportedModel(
            f"{checkpoint.folder}: {model_class.__name__} has no routed experts; this engine serves "
            "Mixture-of-Experts models (`pgmoe upcycle` makes one of a dense Llama)"
        )
    plan = plan_bytes(checkpoint, whole, sockets)
    return ModelPlan(checkpoint, config, model_class, plan.layers, plan.dense_keys)


def load_model(plan: ModelPlan, *, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load the dense weights onto `device` in `dtype`; no expert is read.

    Raises CorruptCheckpoint if weights are missing or of the wrong shape.
    """
    moe.register()
    stored = {key: plan.checkpoint.tensors[key] for key in plan.dense_keys}
    options: dict[str, Any] = {}
    if plan.model_class._can_set_experts_implementation():
        options["experts_implementation"] = moe.EXPERTS_IMPLEMENTATION
    loaded: Any = without_experts(plan.model_class).from_pretrained(
        None,
        config=copy.deepcopy(plan.config),
        state_dict=stored,
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        **options,
    )
    model: PreTrainedModel = loaded[0]
    _check_report(plan.checkpoint, loaded[1])
    if (plan.checkpoint.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(plan.checkpoint.folder)
    model.train(False)
    dense_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return LoadedModel(model, plan.checkpoint, plan.layers, tuple(find_sockets(model)), dense_bytes)


def without_experts(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The same class, but that its instances are built without expert parameters."""

    def __init__(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        empty_experts(self)

    body = {
        "__init__": __init__,
        "__module__": model_class.__module__,
        "config_class": model_class.config_class,
    }
    return type(model_class.__name__, (model_class,), body)


def _read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as error:
        kind = checkpoint.config.get("model_type", "none")
        raise UnsupportedModel(
            f"{checkpoint.folder}: transformers {transformers.__version__} knows no model_type {kind!r}, "
            f"and code from a checkpoint is never run ({error})"
        ) from error
    return config


def _model_class(checkpoint: Checkpoint, config: PretrainedConfig) -> type[PreTrainedModel]:
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UnsupportedModel(
            f"{checkpoint.folder}: architecture {names or 'none'} is not one of transformers'"
        )
    if not found.can_generate():
        raise UnsupportedModel(
            f"{checkpoint.folder}: {names[0]} does not generate text; a ...ForCausalLM does"
        )
    return found


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise CorruptCheckpoint(
            f"{checkpoint.folder}: no weights for {len(missing)} parameters, e.g. {missing[0]}"
        )
    mismatched = sorted(report["mismatched_keys"], key=str)
    if mismatched:
        key, stored, expected = mismatched[0]
        raise CorruptCheckpoint(
            f"{checkpoint.folder}: {key} is {tuple(stored)}, the config asks for {tuple(expected)}"
        )
    errors = report.get("error_msgs") or report.get("conversion_errors")
    if errors:
        raise CheckpointError(f"{checkpoint.folder}: {errors}")
