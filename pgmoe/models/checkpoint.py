"""A Hugging Face checkpoint on disk, checked before anything is loaded: which tensors, where, what type."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from pgmoe.encodings import Encoding
from pgmoe.errors import CheckpointError, CorruptCheckpoint, UnsupportedModel
from pgmoe.memory import page_aligned
from pgmoe.models.pack import Pack, is_pack, read_pack
from pgmoe.models.quantisation import read_encoding

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""What safetensors calls each type."""
SMALL_FILES = ("*.json", "tokenizer*", "*.model", "*.jinja", "*.txt")
"""What a checkpoint folder has beside its weights: configuration, tokenizer, chat template."""
_HUB_WEIGHTS = ["*.safetensors"]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; `offset` and `nbytes` are within the file."""

    key: str
    path: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def parts(self) -> dict[str, StoredTensor]:
        """What it is stored as, by what comes behind its name in a slot: itself, and no scales."""
        return {"": self}

    def part(self, index: int) -> StoredTensor:
        """Its `index`-th entry along the first dimension."""
        nbytes = self.nbytes // self.shape[0]
        return replace(self, shape=self.shape[1:], offset=self.offset + index * nbytes, nbytes=nbytes)

    def __getitem__(self, whole: object) -> torch.Tensor:
        """`tensor[...]` reads it from the file; this is all that transformers asks of a lazy tensor."""
        if whole is not Ellipsis:
            raise IndexError(f"{self.key}: a stored tensor is read whole, with [...]")
        data = page_aligned(self.nbytes)
        try:
            self._read_into(data.numpy().data)
        except OSError as error:
            raise CorruptCheckpoint(f"{self.path}: {error.strerror}; copy the file again") from error
        return data.view(self.dtype).view(self.shape)

    def _read_into(self, memory: memoryview) -> None:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            done = 0
            while done < self.nbytes:
                count = file.readinto(memory[done:])
                if not count:
                    raise CorruptCheckpoint(
                        f"{self.path}: ends inside tensor {self.key}; copy the file again"
                    )
                done += count


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and every safetensors file its index names, headers read and checked."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    """By key; of a pack the dense ones alone."""
    pack: Pack | None = None
    """Where the folder is a pack: what is in its other files."""
    encoding: Encoding = "plain"
    """Of its quantised tensors, if it has any."""

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Open a local folder or, through the hub's client, a hub id.

        Raises CheckpointError, UnsupportedModel or CorruptCheckpoint with what is wrong and what to do.
        """
        folder = resolve_folder(model)
        config = _read_json(folder / "config.json")
        encoding = read_encoding(folder, config)
        if is_pack(folder):
            pack = read_pack(folder)
            pack.check_sizes(folder)
            return cls(folder, config, read_header(folder / pack.dense.file), pack, encoding)
        weight_map = _read_index(folder)
        files = _single_files(folder) if weight_map is None else _shards(folder, weight_map)
        tensors: dict[str, StoredTensor] = {}
        for path in files:
            tensors.update(read_header(path))
        lost = sorted(set(weight_map or ()) - set(tensors))
        if lost:
            raise CorruptCheckpoint(
                f"{folder}: {len(lost)} tensors of {INDEX} are in no shard, e.g. {lost[0]}; copy it again"
            )
        return cls(folder, config, tensors, encoding=encoding)


def resolve_folder(model: str, *, weights: bool = True) -> Path:
    """The local folder of a model: a path (`~` expanded), or a hub id, fetched into the hub's cache.

    Without `weights` only the small files come from the hub: configuration, tokenizer, chat template. Raises
    CheckpointError.
    """
    try:
        path = Path(model).expanduser()
        found = path.is_dir()
    except (OSError, RuntimeError) as error:  # a folder that may not be looked into, a home that nobody has
        raise CheckpointError(f"{model}: {error}") from error
    if found:
        return path
    if path.is_absolute() or model.startswith(("~", ".")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: no such folder; name a checkpoint's, or a hub id such as owner/name")
    try:
        wanted = [*SMALL_FILES, *(_HUB_WEIGHTS if weights else ())]
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{model}: neither a local folder nor to be had from the hub ({type(error).__name__}: {error})"
        ) from error


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Raises CorruptCheckpoint where header and file do not agree."""
    try:
        with safe_open(path, framework="pt"):  # the library checks header, offsets and file length
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CorruptCheckpoint(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise UnsupportedModel(f"{path}: tensor {key} has type {entry['dtype']}, which is not served")
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        tensors[key] = StoredTensor(
            key, str(path), dtype, tuple(entry["shape"]), 8 + length + begin, end - begin
        )
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: no {path.name}; give a Hugging Face checkpoint folder"
        ) from None
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CorruptCheckpoint(f"{path}: holds no JSON object")
    return content


def _read_index(folder: Path) -> dict[str, str] | None:
    """File name by tensor; None if the checkpoint is not sharded."""
    if not (folder / INDEX).exists():
        return None
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise CorruptCheckpoint(f"{folder / INDEX}: no weight_map of tensor to file names; copy it again")
    return weight_map


def _shards(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    names = set(weight_map.values())
    missing = sorted(n for n in names if not (folder / n).is_file())
    if missing:
        raise CorruptCheckpoint(
            f"{folder}: missing {len(missing)} of {len(names)} shards: {', '.join(missing[:3])}; copy them"
        )
    return sorted(folder / n for n in names)


def _single_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():  # others beside it are adapters, or the same weights under other names
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise UnsupportedModel(
            f"{folder}: only pickled weights; convert them to safetensors (save_pretrained does)"
        )
    raise CheckpointError(f"{folder}: no *.safetensors file; give a checkpoint with its weights")
