"""The small files that the default model is made of, from the folders that training wrote.

`python -m recipes.ship EXPERTS PRE_GATED CONVENTIONAL OUT`: EXPERTS holds low_rank.safetensors (`pgmoe
finetune --rank`), the other two are folders of the same experts with trained gates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pgmoe.models.checkpoint import Checkpoint
from pgmoe.pre_gating import SECTION
from pgmoe.training.deltas import Deltas
from pgmoe.training.finetune_result import LOW_RANK


def experts(folder: Path) -> Deltas:
    """The factors alone: gates come from the other folders."""
    with safe_open(folder / LOW_RANK, framework="pt") as file:
        factors = {name: file.get_tensor(name) for name in file.keys() if ".experts." in name}  # noqa: SIM118
        return Deltas(factors, {"rank": int(file.metadata()["rank"])})


def gates(folder: Path) -> Deltas:
    """The routers, and how they are pre-gated, if they are."""
    checkpoint = Checkpoint.open(str(folder))
    found: dict[str, Tensor] = {}
    for key, stored in checkpoint.tensors.items():
        if key.endswith(".gate.weight"):
            with safe_open(stored.path, framework="pt") as file:
                found[key.replace(".block_sparse_moe.", ".mlp.")] = file.get_tensor(key)
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Deltas(found, {SECTION: config[SECTION]} if SECTION in config else {})


def ship(trained: Path, pre_gated: Path, conventional: Path, out: Path) -> None:
    """Write the three files to `out`. Raises OSError, and CheckpointError for folders of something else."""
    out.mkdir(parents=True, exist_ok=True)
    experts(trained).save(out / "experts.safetensors")
    gates(pre_gated).save(out / "pre-gated.safetensors")
    gates(conventional).save(out / "conventional.safetensors")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("experts", "pre_gated", "conventional", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    ship(args.experts, args.pre_gated, args.conventional, args.out)


if __name__ == "__main__":
    main()
