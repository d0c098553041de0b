"""From a checkpoint to a pack."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pgmoe.errors import ConfigError
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.loader import ModelPlan, read_plan
from pgmoe.models.pack import PACK, Pack, is_pack
from pgmoe.new_folder import check_new_folder
from pgmoe.packing.draft import draft_pack
from pgmoe.packing.journal import Journal
from pgmoe.packing.source import small_files, source_of
from pgmoe.packing.writer import PackWriter
from pgmoe.work_folder import publish, work_folder

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all."""


@dataclass(frozen=True)
class Packed:
    """What was written."""

    folder: Path
    num_bytes: int
    """Of all weight files."""
    num_experts: int
    dense_bytes: int
    blob_bytes: int
    """Of the largest blob, which is a slot's size."""
    unpacked_slot_bytes: int
    """What a slot took before."""


def pack(model: str, out: Path, *, progress: Progress | None = None) -> Packed:
    """Write a pack of a checkpoint to `out`, which must not exist or be empty; it appears when complete.

    What an earlier try for the same model left unfinished is checked and used. Raises ConfigError, and the
    errors of `read_plan` and of reading the checkpoint.
    """
    check_new_folder(out)
    plan = read_plan(model)
    if plan.checkpoint.pack is not None:
        raise ConfigError(f"{model} is a pack already; it can be served as it is")
    draft = draft_pack(plan)
    with work_folder(out, wait=False) as work:
        _pack(plan, draft, out, work, progress)
    return _sum_up(plan, draft, out)


def share_pack(model: str, out: Path, *, progress: Progress | None = None) -> None:
    """`pack` for an `out` that other processes may write, too: waits for them and takes what they made."""
    plan = read_plan(model)
    draft = draft_pack(plan)
    with work_folder(out, wait=True) as work:
        if not is_pack(out):
            _pack(plan, draft, out, work, progress)


def _pack(plan: ModelPlan, draft: Pack, out: Path, work: Path, progress: Progress | None) -> None:
    folder = work / "pack"
    stored = sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0
    small = small_files(plan.checkpoint.folder)
    total = draft.num_bytes
    check_new_folder(out, total + sum(path.stat().st_size for path in small) - stored)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    with Journal(work / "journal", draft.model_dump_json()) as journal:
        if journal.begun_anew:  # what stands there is of another model, or of an older version
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        whole = PackWriter(plan, draft, folder, journal, advance).write()
    for path in small:
        shutil.copyfile(path, folder / path.name)
    if source_of(Checkpoint.open(str(plan.checkpoint.folder))) != draft.source:
        raise ConfigError(f"{plan.checkpoint.folder} has changed while it was packed; pack it again")
    (folder / PACK).write_text(whole.model_dump_json(indent=1) + "\n")
    publish(folder, out)


def _sum_up(plan: ModelPlan, draft: Pack, out: Path) -> Packed:
    return Packed(
        folder=out,
        num_bytes=draft.num_bytes,
        num_experts=sum(layer.num_experts for layer in plan.layers),
        dense_bytes=draft.dense.file_bytes,
        blob_bytes=max(layer.blob_bytes for layer in draft.layers),
        unpacked_slot_bytes=max(layer.layout.slot_bytes for layer in plan.layers),
    )
