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

LOW_RANK = ".low_rank."


def experts(folder: Path) -> Deltas:
    """The factors, the scale multiplied into B."""
    with safe_open(folder / "low_rank.safetensors", framework="pt") as file:
        about = file.metadata()
        factors: dict[str, Tensor] = {}
        for name in file.keys():  # noqa: SIM118
            if LOW_RANK in name:
                scale = float(about["scale"]) if name.endswith("_b") else 1.0
                factors[name.replace(LOW_RANK, ".")] = file.get_tensor(name) * scale
    return Deltas(factors, {"rank": int(about["rank"])})


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


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("experts", "pre_gated", "conventional", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, deltas in (
        ("experts", experts(args.experts)),
        ("pre-gated", gates(args.pre_gated)),
        ("conventional", gates(args.conventional)),
    ):
        deltas.save(args.out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
