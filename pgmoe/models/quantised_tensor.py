"""Values and scales that belong together, found among a checkpoint's tensors by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from pgmoe.encodings import SCALE, Encoding, expanded_shape, make_decoder, scale_shape
from pgmoe.errors import CorruptCheckpoint
from pgmoe.models.checkpoint import Checkpoint, StoredTensor

_NAMES = {"fp8_block": ("", "_scale_inv"), "mxfp4": ("_blocks", "_scales")}
"""What comes behind a weight's own key: (values, scales)."""
_TYPES: dict[str, tuple[set[torch.dtype], set[torch.dtype]]] = {
    "fp8_block": (
        {torch.float8_e4m3fn},
        {torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu},
    ),
    "mxfp4": ({torch.uint8}, {torch.uint8}),
}


@dataclass(frozen=True)
class QuantisedTensor:
    """One weight, in two tensors of the checkpoint."""

    key: str
    """The weight's own, as if it were not quantised."""
    values: StoredTensor
    scales: StoredTensor
    encoding: Encoding

    @property
    def path(self) -> str:
        """The file of the values."""
        return self.values.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; matrices are (outputs, inputs), perhaps with the expert index before."""
        return expanded_shape(self.encoding, self.values.shape)

    @property
    def parts(self) -> dict[str, StoredTensor]:
        """What it is stored as, by what comes behind its name in a slot."""
        return {"": self.values, SCALE: self.scales}

    def part(self, index: int) -> QuantisedTensor:
        """Its `index`-th entry along the first dimension, one of all experts' matrices."""
        return replace(self, values=self.values.part(index), scales=self.scales.part(index))

    def __getitem__(self, whole: object) -> torch.Tensor:
        """`tensor[...]` reads both and expands them to float32."""
        if whole is not Ellipsis:
            raise IndexError(f"{self.key}: a stored tensor is read whole, with [...]")
        values, scales = self.values[...], self.scales[...]
        out = torch.empty(self.shape, dtype=torch.float32)
        if self.encoding == "fp8_block":
            values, scales = values.flatten(0, -2), scales.view(-1, *scales.shape[-2:])
        else:
            values, scales = values.flatten(0, -3), scales.flatten(0, -2)
        make_decoder(self.encoding, out.dtype, out.device)(values, scales, out.flatten(0, -2))
        return out


Weight = StoredTensor | QuantisedTensor


def join(checkpoint: Checkpoint, keys: Iterable[str] | None = None) -> dict[str, Weight]:
    """The weights by their own keys: quantised ones with their scales, the others as they are.

    Of the tensors named by `keys`, or all. Raises CorruptCheckpoint for values without scales, the other way
    round, or of a type or shape that does not belong to them.
    """
    tensors = checkpoint.tensors if keys is None else {key: checkpoint.tensors[key] for key in keys}
    if checkpoint.encoding == "plain":
        return dict(tensors)
    behind_values, behind_scales = _NAMES[checkpoint.encoding]
    found: dict[str, Weight] = dict(tensors)
    for key, stored in tensors.items():
        if key.endswith(behind_scales):
            base = key.removesuffix(behind_scales)
            values = _partner(stored, tensors, base + behind_values)
            found[base] = _checked(QuantisedTensor(base, values, stored, checkpoint.encoding))
            del found[key]
            if behind_values:
                del found[values.key]
        elif (behind_values and key.endswith(behind_values)) or stored.dtype == torch.float8_e4m3fn:
            _partner(stored, tensors, key.removesuffix(behind_values) + behind_scales)
    return found


def _partner(stored: StoredTensor, tensors: Mapping[str, StoredTensor], key: str) -> StoredTensor:
    if key not in tensors:
        raise CorruptCheckpoint(
            f"{stored.path}: {stored.key} is quantised, but there is no {key} to go with it; "
            "copy the checkpoint again"
        )
    return tensors[key]


def _checked(weight: QuantisedTensor) -> QuantisedTensor:
    for stored, types in zip((weight.values, weight.scales), _TYPES[weight.encoding], strict=True):
        if stored.dtype not in types:
            raise CorruptCheckpoint(
                f"{stored.path}: {stored.key} is of type {_name(stored.dtype)}; "
                f"{weight.encoding} has {' or '.join(sorted(map(_name, types)))} there"
            )
    wanted = scale_shape(weight.encoding, weight.values.shape)
    if weight.scales.shape != wanted or len(wanted) < 2:
        raise CorruptCheckpoint(
            f"{weight.scales.path}: {weight.scales.key} is {weight.scales.shape}; {weight.values.key} "
            f"of {weight.values.shape} needs {wanted}"
        )
    return weight


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
