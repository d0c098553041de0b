"""The dense part of a model: built without experts, filled from a checkpoint or, as a trial, from headers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from pgmoe.errors import CheckpointError, CorruptCheckpoint
from pgmoe.models import moe
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.families import empty_experts
from pgmoe.models.quantised_tensor import QuantisedTensor, Weight, join
from pgmoe.models.stored_embedding import StoredEmbedding


class StoredShape:
    """Stands for a stored tensor while a load is tried out: its shape and type without its bytes."""

    def __init__(self, stored: Weight) -> None:
        self._shape = stored.shape
        self._dtype = torch.float32 if isinstance(stored, QuantisedTensor) else stored.dtype

    def __getitem__(self, whole: object) -> torch.Tensor:
        return torch.empty(self._shape, dtype=self._dtype, device="meta")


def without_experts(
    model_class: type[PreTrainedModel], embedding: StoredEmbedding | None = None
) -> type[PreTrainedModel]:
    """The same class, but that its instances are built without expert parameters, and with this embedding."""

    def __init__(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        empty_experts(self)
        if embedding is not None:
            self.set_input_embeddings(embedding)

    body = {
        "__init__": __init__,
        "__module__": model_class.__module__,
        "config_class": model_class.config_class,
    }
    return type(model_class.__name__, (model_class,), body)


def num_bytes(model: PreTrainedModel) -> int:
    """Of all parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def try_fill(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    keys: Iterable[str],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """`fill` on the meta device: says what it would say and gives the sizes, but reads nothing."""
    shapes = {key: StoredShape(weight) for key, weight in join(checkpoint, keys).items()}
    with _quiet():
        return fill(checkpoint, config, model_class, shapes, dtype=dtype, device=torch.device("meta"))


def fill(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    stored: Mapping[str, Weight | StoredShape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    embedding: StoredEmbedding | None = None,
) -> PreTrainedModel:
    """A model without experts, filled from `stored`, in `dtype` but for what transformers keeps in float32.

    With `embedding` in the place of its input embedding, where given. Raises CorruptCheckpoint if a weight is
    missing, does not fit or cannot be read.
    """
    moe.register()
    options: dict[str, Any] = {}
    if model_class._can_set_experts_implementation():
        options["experts_implementation"] = moe.EXPERTS_IMPLEMENTATION
    try:
        loaded: Any = without_experts(model_class, embedding).from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=stored,
            dtype=dtype,
            device_map={"": device},
            ignore_mismatched_sizes=True,  # they are in the report, which names them
            output_loading_info=True,
            **options,
        )
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from error
    model: PreTrainedModel = loaded[0]
    _check_report(checkpoint, loaded[1])
    if (checkpoint.folder / "generation_config.json").exists():
        model.generation_config = _read_generation_config(checkpoint)
    model.train(False)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _read_generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(checkpoint.folder)
    except (OSError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"{checkpoint.folder}/generation_config.json: {error}") from error


def check_complete(folder: Path, missing: Iterable[str]) -> None:
    """Raises CorruptCheckpoint if any parameter is missing."""
    if found := sorted(missing):
        raise CorruptCheckpoint(f"{folder}: no weights for {len(found)} parameters, e.g. {found[0]}")


def _check_report(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    check_complete(checkpoint.folder, report["missing_keys"])
    mismatched = sorted(report["mismatched_keys"], key=str)
    if mismatched:
        key, stored, expected = mismatched[0]
        raise CorruptCheckpoint(
            f"{checkpoint.folder}: {key} is {tuple(stored)}, the config asks for {tuple(expected)}"
        )
