"""What makes an upcycled model's experts differ, in a small file: gates, and low-rank factors in 8 bits.

Expert e's matrix is W + B_e A_e, with W that of the dense model (LoRA, arXiv 2106.09685). Each vector of a
factor is stored as int8 with a scale of its own, the largest of it over 127. Names are those of Mixtral's
modules in transformers, whose `gate_up_proj` is w1 above w3 of the checkpoint. Shape letters: E experts, R
rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pgmoe.errors import CheckpointError, ConfigError

_SCALE = ".scale"
_ABOUT = "about"
_EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
_GATE = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.gate\.weight")
_AXES = {"a": 2, "b": 1}
"""Along which one vector of a factor lies: A is (E, R, in), B is (E, out, R)."""


@dataclass(frozen=True)
class Deltas:
    """Gates by `model.layers.N.mlp.gate.weight`, factors by `model.layers.N.mlp.experts.MATRIX_a`, `_b`."""

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    """Where they come from, and how the model is pre-gated, if it is."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a file that `save` wrote. Raises CheckpointError."""
        try:
            with safe_open(path, framework="pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads(file.metadata()[_ABOUT])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds no deltas of experts: {error}") from error
        names = [name for name in stored if not name.endswith(_SCALE)]
        return cls({name: _plain(stored[name], stored.get(name + _SCALE)) for name in names}, about)

    def save(self, path: Path) -> None:
        """Write them; factors lose precision, gates become bfloat16. Raises OSError."""
        stored: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            axis = _AXES.get(name.rpartition("_")[2])
            if axis is None:
                stored[name] = tensor.bfloat16()
            else:
                stored[name], stored[name + _SCALE] = _in_8_bits(tensor, axis)
        save_file(stored, path, metadata={"format": "pt", _ABOUT: json.dumps(self.about)})

    def edit(self, name: str, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the upcycled checkpoint, by its name there; in its shape and type.

        Raises ConfigError where they are deltas of another model.
        """
        if gate := _GATE.fullmatch(name):
            found = self._of(f"model.layers.{gate[1]}.mlp.gate.weight")
        elif expert := _EXPERT.fullmatch(name):
            found = tensor.float() + self._delta(int(expert[1]), int(expert[2]), expert[3])
        else:
            return tensor
        if found.shape != tensor.shape:
            raise ConfigError(f"deltas of {name} are {tuple(found.shape)}, the model's {tuple(tensor.shape)}")
        return found.to(tensor.dtype)

    def _delta(self, layer: int, expert: int, matrix: str) -> Tensor:
        fused = f"model.layers.{layer}.mlp.experts.{'down_proj' if matrix == 'w2' else 'gate_up_proj'}"
        a_Ri, b_oR = self._of(f"{fused}_a")[expert], self._of(f"{fused}_b")[expert]
        if matrix != "w2":
            gate_oR, up_oR = b_oR.chunk(2)
            b_oR = gate_oR if matrix == "w1" else up_oR
        return b_oR @ a_Ri

    def _of(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ConfigError(f"there are no deltas of {name}: they are of another model")
        return self.tensors[name]


def _in_8_bits(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    scale = (tensor.float().abs().amax(axis, keepdim=True) / 127).clamp(min=1e-12)
    return (tensor / scale).round().to(torch.int8), scale


def _plain(stored: Tensor, scale: Tensor | None) -> Tensor:
    return stored.float() if scale is None else stored.float() * scale
