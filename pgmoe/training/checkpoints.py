"""Checkpoints of an interrupted training: which are whole, and whether they belong to this command.

A checkpoint counts when its marker is there, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgmoe.errors import ConfigError
from pgmoe.models.checkpoint import SMALL_FILES, Checkpoint
from pgmoe.training.finetune_config import FinetuneConfig
from pgmoe.work_folder import sync

MARKER = "complete"
COMMAND = "command.json"
LOG = "log.json"
"""Written last by a training that is finished."""


def mark_complete(folder: Path) -> None:
    """Say that all of a checkpoint is written, once it is on the disk. Raises OSError."""
    for path in (*folder.iterdir(), folder):
        sync(path)
    write_synced(folder / MARKER, "")
    sync(folder.parent)


def remove_older(newest: Path) -> None:
    """Remove the checkpoints beside this one."""
    for folder in newest.parent.glob("checkpoint-*"):
        if folder != newest:
            shutil.rmtree(folder, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete one, None if there is none. Removes those that are not complete."""
    complete = []
    for found in folder.glob("checkpoint-*"):
        if (found / MARKER).exists():
            complete.append(found)
        else:
            shutil.rmtree(found, ignore_errors=True)  # another worker may do the same
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_trained(work: Path) -> bool:
    """Whether only the result is still to be written."""
    return (work / LOG).exists()


def check_command(work: Path, config: FinetuneConfig, checkpoint: Checkpoint) -> None:
    """Note what is to be done, or raise ConfigError unless it is what was noted before.

    Where nothing could be lost, without a complete checkpoint, the note is written anew. Raises OSError.
    """
    command = _flat({**config.command(), "contents": _contents(config, checkpoint)})
    path = work / COMMAND
    if not path.exists() or not (is_trained(work) or newest_checkpoint(work)):
        write_synced(path.with_suffix(".new"), json.dumps(command, indent=2))
        path.with_suffix(".new").rename(path)
        sync(work)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in command | before if command.get(name) != before.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {before.get(name)}, is {command.get(name)}" for name in changed)
        raise ConfigError(
            f"{work} holds an unfinished training with another command: {listed}; repeat that one to go on, "
            "or remove the folder to begin anew"
        )


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk. Raises OSError."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def _contents(config: FinetuneConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Of all that is read, models' weights by size and time of change, the rest by checksum."""
    paths = [*config.data, *([config.evaluate] if config.evaluate is not None else [])]
    found: dict[str, Any] = {str(path): checksum(path) for path in paths}
    found |= _model_contents(config.model, checkpoint)
    if config.teacher is not None:
        found |= _model_contents(config.teacher, Checkpoint.open(config.teacher))
    return found


def _model_contents(name: str, checkpoint: Checkpoint) -> dict[str, str]:
    small = {path for pattern in SMALL_FILES for path in checkpoint.folder.glob(pattern) if path.is_file()}
    weights = {Path(tensor.path) for tensor in checkpoint.tensors.values()}
    return {f"{name}/{path.name}": checksum(path) for path in sorted(small)} | {
        f"{name}/{path.name}": f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns} ns"
        for path in sorted(weights)
    }


def checksum(path: Path) -> str:
    """SHA-256 in hexadecimal. Raises ConfigError for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _flat(command: Mapping[str, Any]) -> dict[str, Any]:
    """With the contents beside the options, and as it comes back from JSON."""
    contents = {f"content of {name}": value for name, value in command["contents"].items()}
    flat = {name: value for name, value in command.items() if name != "contents"} | contents
    return dict(json.loads(json.dumps(flat)))
