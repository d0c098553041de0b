"""A model to train, which of its tensors are trained, and putting these into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    SwitchTransformersConfig,
)
from transformers.utils import logging

from pgmoe.errors import CheckpointError, ConfigError, UnsupportedModel
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.dense import check_complete
from pgmoe.models.moe_blocks import moe_blocks
from pgmoe.models.pre_gate import pre_gate
from pgmoe.models.switch import note_tables, tie_stacks
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.low_rank import attach, merge
from pgmoe.training.padded_rows import pad_rows


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice."""
    log: Any = logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_whole(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """Load a checkpoint on the CPU, routing as its config says; `dtype` None is the one that config names.

    Only safetensors are read, and no code of the model is run. Raises CheckpointError or one of its kinds.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model: PreTrainedModel
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    if isinstance(model.config, SwitchTransformersConfig):
        note_tables(model.config, Checkpoint.open(str(folder)).tensors)
        tie_stacks(model)
    check_complete(folder, report["missing_keys"] & {name for name, _ in model.named_parameters()})
    pre_gate(model)
    return model


def stored_type(checkpoint: Checkpoint) -> torch.dtype:
    """Of all its weights, whatever its config says. Raises UnsupportedModel if they differ in it."""
    by_type = {t.dtype: key for key, t in checkpoint.tensors.items() if t.dtype.is_floating_point}
    if len(by_type) > 1:
        told = ", ".join(f"{key} as {str(dtype).removeprefix('torch.')}" for dtype, key in by_type.items())
        raise UnsupportedModel(
            f"{checkpoint.folder} stores {told}; a model to train has one type: save it in one, "
            "`model.to(torch.bfloat16).save_pretrained(folder)` does"
        )
    return next(iter(by_type), torch.float32)


def load_trainable(config: FinetuneConfig, folder: Path) -> PreTrainedModel:
    """The model to train, on the CPU: what is trained in float32, the rest in the precision of products.

    Raises CheckpointError or one of its kinds, among them UnsupportedModel for a model without experts.
    """
    reduced = config.precision == "bf16" and (config.rank is not None or config.train == "gates")
    model = load_whole(folder, torch.bfloat16 if reduced else torch.float32)
    blocks = [block for stack in moe_blocks(model).values() for block in stack]
    if not blocks:
        raise UnsupportedModel(
            f"{folder}: {type(model).__name__} has no MoE blocks; `pgmoe upcycle` makes some"
        )
    if config.rank is not None or config.train == "gates":
        model.requires_grad_(False)
        for block in blocks:
            block.router.float().requires_grad_(True)
    if config.rank is not None:
        attach(model, config.rank, config.scale, config.seed)
    else:
        _choose_experts_implementation(model)
        pad_rows(model)
    if config.aux_weight is not None:
        if not hasattr(model.config, "router_aux_loss_coef"):
            raise ConfigError(f"aux_weight: {type(model).__name__} has no load-balance loss; leave it out")
        model.config.router_aux_loss_coef = config.aux_weight
    model.config.use_cache = False
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is trained, by parameter name; tied tensors once. Shares the model's memory."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def take_over(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put trained tensors in the place of a model's own, which keep their types.

    Raises ConfigError if they are not exactly those that are trained.
    """
    own = trained_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ConfigError(
            f"{len(odd)} trained tensors belong to another run, e.g. {odd[0]}; remove its folder"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def put_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put trained tensors, as `portable` gives them, into the model that they were trained from.

    Weights keep their types. Raises ConfigError for tensors of another model.
    """
    own = dict(model.named_parameters())
    deltas: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        matrix, _, factor = name.rpartition("_")
        if name in own:
            _copy(own[name], tensor, name)
        elif matrix in own and factor in ("a", "b"):
            deltas.setdefault(matrix, {})[factor] = tensor
        else:
            raise ConfigError(f"the model has no {name}: these tensors are of another")
    for matrix, factors in deltas.items():
        weight = own[matrix]
        _copy(weight, merge(weight, factors["a"], factors["b"]), matrix)


def _copy(weight: Tensor, tensor: Tensor, name: str) -> None:
    if weight.shape != tensor.shape:
        raise ConfigError(f"{name} has shape {tuple(tensor.shape)}, the model's {tuple(weight.shape)}")
    weight.copy_(tensor)


def _choose_experts_implementation(model: PreTrainedModel) -> None:
    """One product for all experts where the family can: eager's loop over experts is three times as slow."""
    if cast(Any, model)._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")
