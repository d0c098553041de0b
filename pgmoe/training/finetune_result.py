"""What a training leaves: tensors and a log in its work folder, then a checkpoint folder made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pgmoe.models.checkpoint import INDEX, SMALL_FILES, Checkpoint
from pgmoe.training.checkpoints import LOG, write_synced
from pgmoe.training.dataset import Rows
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.training.low_rank import portable
from pgmoe.training.trainable import load_whole, put_into, quiet, stored_type
from pgmoe.training.training_log import TrainingLog
from pgmoe.work_folder import publish, sync

_SHARD_SIZE = "4GB"
_TRAINED, _RESULT = "trained.safetensors", "result"
LOW_RANK = "low_rank.safetensors"
"""In the result: factors and routers alone, as `portable` gives them. With the base model they make it."""


@dataclass(frozen=True)
class Finetuned:
    """What was written."""

    folder: Path
    num_steps: int
    num_tokens: int
    """Trained on, repetitions included."""
    loss: float
    """Of the last step."""
    eval_loss: float | None
    """Of the held-out file, measured before trained weights are rounded to the types that are written."""
    num_cut: int
    """Rows that lost their end, being longer than the limit."""
    num_dropped: int
    """Rows with nothing to learn within the limit."""
    plotted: bool
    """Whether there is a plot, which needs matplotlib."""


def keep_trained(work: Path, tensors: Mapping[str, Tensor], history: Sequence[Any], rows: Rows) -> None:
    """Write what a finished training gave; the log last, by which it is known as finished. Raises OSError."""
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, work / _TRAINED)
    sync(work / _TRAINED)
    log = {"history": list(history), "num_cut": rows.num_cut, "num_dropped": rows.num_dropped}
    write_synced(work / f"{LOG}.new", json.dumps(log))
    (work / f"{LOG}.new").rename(work / LOG)
    sync(work)


def write_result(config: FinetuneConfig, checkpoint: Checkpoint, work: Path) -> Finetuned:
    """Put what was trained into the source's weights, in their types, and let `config.out` appear."""
    log = json.loads((work / LOG).read_text(encoding="utf-8"))
    tensors = portable(load_file(work / _TRAINED), 1.0 if config.rank is None else config.scale)
    folder = work / _RESULT
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        dtype = stored_type(checkpoint)
        model = load_whole(checkpoint.folder, dtype)
        put_into(model, tensors)
        model.to(dtype)  # type: ignore[arg-type]  # families keep some buffers in float32
        model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    # Its own files, among them the section that says how a model is pre-gated, and not what was set to train.
    for path in {path for pattern in SMALL_FILES for path in checkpoint.folder.glob(pattern)}:
        if path.name != INDEX and path.is_file():
            shutil.copyfile(path, folder / path.name)
    if config.rank is not None:
        # No alpha: it is in B already, and who reads it as LoRA's would scale a second time.
        metadata = {"rank": str(config.rank), "scale": "1", "base": Path(config.model).name}
        save_file(tensors, folder / LOW_RANK, {**metadata, "format": "pt"})
    for path in folder.iterdir():
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors makes its files private
    training = TrainingLog.of(log["history"])
    training.write(folder)
    plotted = training.plot(folder)
    publish(folder, config.out)
    return Finetuned(
        config.out,
        training.num_steps,
        training.num_tokens,
        training.last("loss") or 0.0,
        training.last("eval_loss"),
        log["num_cut"],
        log["num_dropped"],
        plotted,
    )
