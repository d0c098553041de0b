"""Rewiring a checkpoint: its gates select for a later block from now on, and are ready to be trained so.

Hwang et al., "Pre-gated MoE" (arXiv 2308.12066), section 4.1. Names, shapes and types of all tensors stay,
so the files are copied, and of their bytes only those of new gates change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgmoe.errors import ConfigError, UnsupportedModel
from pgmoe.models.byte_plan import stored_keys
from pgmoe.models.checkpoint import SMALL_FILES, Checkpoint, StoredTensor
from pgmoe.models.loader import load_model, read_plan
from pgmoe.models.moe_blocks import MoEBlock
from pgmoe.models.pre_gate import gate_map, pre_gated_stacks
from pgmoe.models.routers import rescale
from pgmoe.new_folder import check_new_folder, new_folder
from pgmoe.pre_gating import SECTION, PreGating, Scope

Start = Literal["next", "own", "fresh"]
"""Where a gate that selects for a later block starts from: that block's old router, with the difference of
the two blocks' norms folded in; the old router of the block whose input it reads; or chance."""
Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all."""

FRESH_SPREAD = 0.02
_CHUNK = 64 << 20
_NUM_TRIALS = 16


@dataclass(frozen=True)
class Rewired:
    """What was written."""

    folder: Path
    num_bytes: int
    pre_gating: PreGating | None
    """None at level 0, which changes nothing."""


def pregate(
    source: str,
    out: Path,
    *,
    level: int = 1,
    scope: Scope = "decoder",
    start: Start = "next",
    seed: int = 0,
    progress: Progress | None = None,
) -> Rewired:
    """Write `source` to `out` with gates that select `level` MoE blocks ahead; an ordinary checkpoint.

    Until it is trained, the result is a worse model than its source. At level 0 it is a copy. `seed` draws
    fresh gates. `out` must not exist or be empty; it appears only when it is complete. The dense weights
    are in memory meanwhile, in float32. Raises ConfigError, and CheckpointError or one of its kinds.
    """
    if start not in get_args(Start):
        raise ConfigError(f"start {start!r} is none of {', '.join(get_args(Start))}")
    check_new_folder(out)
    checkpoint = Checkpoint.open(source)
    if checkpoint.pack is not None:
        raise UnsupportedModel(
            f"{source} is a pack; name the checkpoint that it was made of, and pack the result"
        )
    if SECTION in checkpoint.config:
        raise UnsupportedModel(f"{source} is pre-gated already; name the conventional model")
    if level == 0:
        return _write(checkpoint, out, None, {}, progress)
    wanted = PreGating(level=level, scope=scope)
    gates, tensors = _rewire(source, wanted, start, seed)
    made_from = {"model": Path(source).name, "start": start, "seed": seed, "pgmoe": version("pgmoe")}
    pre_gating = PreGating(level=level, scope=scope, gates=gates, made_from=made_from)
    return _write(checkpoint, out, pre_gating, tensors, progress)


def _rewire(
    source: str, wanted: PreGating, start: Start, seed: int
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The gate map, and the weights of new gates by checkpoint key."""
    plan = read_plan(source)
    loaded = load_model(plan, dtype=torch.float32, device=torch.device("cpu"))  # whatever type gates have
    try:
        model = loaded.model
        readers = gate_map(pre_gated_stacks(model, wanted), wanted.level)
        generator = torch.Generator().manual_seed(seed)
        weights: dict[str, Tensor] = {}
        for block, reader in readers.items():
            if block is not reader:
                weights |= _new_gate(model, block, reader, start, generator)
        keys = stored_keys(plan.checkpoint, model, weights)
        return {b.router_name: r.name for b, r in readers.items()}, {keys[n]: w for n, w in weights.items()}
    finally:
        loaded.close()


@torch.no_grad()
def _new_gate(
    model: PreTrainedModel, block: MoEBlock, reader: MoEBlock, start: Start, generator: torch.Generator
) -> dict[str, Tensor]:
    """By parameter name: what the gate of `block`, which reads `reader`'s input, starts from."""
    here = (reader if start == "own" else block).router.state_dict()  # biases of some are buffers
    gate = {f"{block.router_name}.{name}": weight.clone() for name, weight in here.items()}
    width = model.config.get_text_config().hidden_size
    matrices = [name for name, weight in gate.items() if weight.dim() == 2 and weight.shape[1] == width]
    if start == "fresh":
        for name, weight in gate.items():
            drawn = torch.randn(weight.shape, generator=generator) * FRESH_SPREAD
            weight.copy_(drawn if name in matrices else torch.zeros_like(weight))
    if start == "next":
        for name in matrices:
            gate[name] = _for_input_of(model, gate[name], block, reader)
    return gate


def _for_input_of(model: nn.Module, weight_ED: Tensor, block: MoEBlock, reader: MoEBlock) -> Tensor:
    """The same gate, but that it gives for `reader`'s normed input what it gave for `block`'s of the same.

    What a norm adds, which is the same for all inputs, is left out.
    """
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(_NUM_TRIALS, weight_ED.shape[-1], generator=generator)
    between = rescale(model, reader.name, block.name, x_ND)
    return weight_ED if between is None else weight_ED * between.ratio_D


def _write(
    checkpoint: Checkpoint,
    out: Path,
    pre_gating: PreGating | None,
    tensors: Mapping[str, Tensor],
    progress: Progress | None,
) -> Rewired:
    weights = sorted({Path(tensor.path) for tensor in checkpoint.tensors.values()})
    total = sum(path.stat().st_size for path in weights)
    with new_folder(out, total) as folder:
        done = 0
        for path in weights:
            for count in _copied(path, folder / path.name):
                done += count
                if progress is not None:
                    progress(done, total)
        for key, tensor in tensors.items():
            _overwrite(folder, checkpoint.tensors[key], tensor)
        small = {path for pattern in SMALL_FILES for path in checkpoint.folder.glob(pattern)}
        for path in small:
            shutil.copyfile(path, folder / path.name)
        if pre_gating is not None:
            config = {**checkpoint.config, SECTION: pre_gating.to_dict()}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Rewired(out, total, pre_gating)


def _copied(source: Path, target: Path) -> Iterator[int]:
    """Copy a file, saying after each piece how many bytes it had."""
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(_CHUNK):
            write.write(piece)
            yield len(piece)


def _overwrite(folder: Path, stored: StoredTensor, tensor: Tensor) -> None:
    """Put a tensor of the same shape in the place of the copied one."""
    assert tensor.shape == stored.shape, stored.key
    with (folder / Path(stored.path).name).open("r+b") as file:
        file.seek(stored.offset)
        file.write(tensor.to(stored.dtype).contiguous().view(torch.uint8).numpy().tobytes())
