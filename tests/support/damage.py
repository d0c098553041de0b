"""Changes to a checkpoint folder: what accidents and other people's tools do to it."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pgmoe.models.loader import read_plan

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Apply `change` to the tensors of the only weight file."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the header; written without the padding that aligns the tensors."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Apply `change` to the map from tensor to shard."""
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def age(path: Path) -> None:
    """Let it have been written an hour ago: the next write shows however soon it comes."""
    written_s = time.time() - 3600
    os.utime(path, (written_s, written_s))


class Original:
    """A file as it is now: content and time of the last write."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self._stat = path, path.read_bytes(), path.stat()

    def put_back(self) -> None:
        """Make it so again for those, too, who have it open."""
        self.path.write_bytes(self.content)
        self.put_back_time()

    def put_back_time(self) -> None:
        """Only this, as it is with bits that went bad on the disk."""
        os.utime(self.path, ns=(self._stat.st_atime_ns, self._stat.st_mtime_ns))


def cut(path: Path, num_bytes: int) -> None:
    """Keep the first bytes only, or all but the last where negative."""
    path.write_bytes(path.read_bytes()[:num_bytes])


def flip_bit(path: Path, offset: int) -> None:
    """Turn one bit of the byte at this place around."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def cut_experts(folder: Path) -> list[Path]:
    """End each file of experts where its first one begins, and say which files these are."""
    begins: dict[str, int] = {}
    for extent in (
        e for layer in read_plan(str(folder)).layers for extents in layer.extents for e in extents
    ):
        begins[extent.path] = min(extent.offset, begins.get(extent.path, extent.offset))
    for path, begin in begins.items():
        os.truncate(path, begin)
    return [Path(path) for path in begins]


def cut_embedding(folder: Path) -> list[Path]:
    """End the file of the input embedding before its first row, and say which file this is."""
    embedding = read_plan(str(folder)).checkpoint.tensors["model.embed_tokens.weight"]
    os.truncate(embedding.path, embedding.offset)
    return [Path(embedding.path)]


def add_code(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Put Python files beside the weights: (the file that running any of them writes, their auto_map)."""
    ran = folder / "ran"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    return ran, {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", None],
    }
