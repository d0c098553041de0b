"""From a checkpoint to a model with its dense weights on the device and its experts left in the files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from pgmoe.errors import CorruptCheckpoint, UnsupportedModel
from pgmoe.layout import ExpertLayer
from pgmoe.models import moe
from pgmoe.models.byte_plan import plan_bytes
from pgmoe.models.checkpoint import Checkpoint, StoredTensor
from pgmoe.models.dense import fill, num_bytes, try_fill, without_experts
from pgmoe.models.families import find_sockets, note_stored
from pgmoe.models.own_families import own_model_class
from pgmoe.models.own_families import register as register_own_families
from pgmoe.models.pack_plan import plan_pack
from pgmoe.models.pre_gate import PreGates, pre_gate
from pgmoe.models.quantised_tensor import join
from pgmoe.models.socket import ExpertSocket
from pgmoe.models.stored_embedding import StoredEmbedding, find_embedding


@dataclass(frozen=True)
class LoadedModel:
    """A model without experts, and what is needed to give it some."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    layers: tuple[ExpertLayer, ...]
    """Routed experts in execution order; `layers[i]` belongs to `sockets[i]`."""
    sockets: tuple[ExpertSocket, ...]
    loaded_bytes: int
    """Bytes of memory that everything but the experts takes."""
    embedding: StoredEmbedding | None
    """The input embedding, if it stays in its file."""
    pre_gates: PreGates | None
    """How it selects experts ahead, if it does."""

    def close(self) -> None:
        """Give back files. The model computes no more."""
        if self.embedding is not None:
            self.embedding.close()

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
    """Tensors of the checkpoint, scales among them."""
    dense_bytes: int
    """Bytes of everything but the experts, in the experts' type."""
    embedding: StoredTensor | None
    """The input embedding, if it can stay in its file. Where the device is RAM, it does."""
    skeleton: PreTrainedModel
    """The model without experts, on the meta device."""

    def loaded_bytes(self, device: torch.device) -> int:
        """Bytes that everything but the experts takes once loaded onto `device`."""
        if self.embedding is None or device.type != "cpu":
            return self.dense_bytes
        num_elements = torch.Size(self.embedding.shape).numel()
        return self.dense_bytes - num_elements * self.layers[0].dtype.itemsize


def read_plan(model: str) -> ModelPlan:
    """Check a checkpoint and find its experts. Raises CheckpointError or one of its kinds."""
    checkpoint = Checkpoint.open(model)
    config = _read_config(checkpoint)
    model_class = _model_class(checkpoint, config)
    whole, emptied = _build(checkpoint, config, model_class)
    sockets = find_sockets(emptied)
    if not sockets:
        raise UnsupportedModel(
            f"{checkpoint.folder}: {model_class.__name__} has no routed experts; this engine serves "
            "Mixture-of-Experts models (`pgmoe upcycle` makes one of a dense Llama)"
        )
    for socket in sockets:
        if not 1 <= socket.top_k <= socket.num_experts:
            raise CorruptCheckpoint(
                f"{checkpoint.folder}/config.json: a token uses {socket.top_k} of {socket.num_experts} "
                "experts; it must use at least 1 and at most all"
            )
    pack, expanded = checkpoint.pack, _computed_in(config)
    if pack is not None:
        plan = plan_pack(checkpoint, pack, sockets, expanded=expanded)
    else:
        plan = plan_bytes(checkpoint, whole, sockets, expanded=expanded)
    dtype = plan.layers[0].dtype
    skeleton = try_fill(checkpoint, config, model_class, plan.dense_keys, dtype)
    pre_gate(skeleton)
    return ModelPlan(
        checkpoint=checkpoint,
        config=config,
        model_class=model_class,
        layers=plan.layers,
        dense_keys=plan.dense_keys,
        dense_bytes=num_bytes(skeleton),
        embedding=find_embedding(emptied, checkpoint),
        skeleton=skeleton,
    )


def load_model(plan: ModelPlan, *, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load the dense weights onto `device` in `dtype`; no expert is read.

    Raises CorruptCheckpoint if the files are no longer those that the plan was made of.
    """
    stored = join(plan.checkpoint, plan.dense_keys)
    embedding = None
    with ExitStack() as on_failure:
        if plan.embedding is not None and device.type == "cpu":
            del stored[plan.embedding.key]
            embedding = StoredEmbedding(plan.embedding, dtype)
            on_failure.callback(embedding.close)
        model = fill(
            plan.checkpoint,
            plan.config,
            plan.model_class,
            stored,
            dtype=dtype,
            device=device,
            embedding=embedding,
        )
        on_failure.pop_all()
    sockets = tuple(find_sockets(model))
    return LoadedModel(
        model, plan.checkpoint, plan.layers, sockets, num_bytes(model), embedding, pre_gate(model)
    )


def _read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    register_own_families()
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except StrictDataclassError as error:
        raise CorruptCheckpoint(f"{checkpoint.folder}/config.json: {' '.join(str(error).split())}") from error
    except (ValueError, KeyError, OSError, TypeError) as error:
        kind = checkpoint.config.get("model_type", "none")
        raise UnsupportedModel(
            f"{checkpoint.folder}: transformers {transformers.__version__} knows no model_type {kind!r}, "
            f"and code from a checkpoint is never run ({error})"
        ) from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is quantised gets expanded before transformers sees it
    note_stored(config, checkpoint.tensors)
    return config


def _computed_in(config: PretrainedConfig) -> torch.dtype:
    """The type to expand quantised weights to: the config's, or bfloat16 where that is none to compute in."""
    computed = (torch.float32, torch.bfloat16, torch.float16)
    return next((dtype for dtype in computed if config.dtype == dtype), torch.bfloat16)


def _model_class(checkpoint: Checkpoint, config: PretrainedConfig) -> type[PreTrainedModel]:
    names = config.architectures or []
    name = str(names[0]) if names else ""
    found = getattr(transformers, name, None) or own_model_class(name)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UnsupportedModel(
            f"{checkpoint.folder}: architecture {names or 'none'} is not one of transformers' or pgmoe's"
        )
    if not found.can_generate():
        raise UnsupportedModel(
            f"{checkpoint.folder}: {names[0]} does not generate text; a ...ForCausalLM does"
        )
    return found


def _build(
    checkpoint: Checkpoint, config: PretrainedConfig, model_class: type[PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Shapes alone, on the meta device: the model as transformers has it, and without its experts."""
    try:
        with torch.device("meta"):
            return model_class(copy.deepcopy(config)), without_experts(model_class)(copy.deepcopy(config))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(
            f"{checkpoint.folder}/config.json: no {model_class.__name__} can be built of it "
            f"({type(error).__name__}: {error})"
        ) from error
