"""Parquet files as rows of tokens to train on.

Columns, as TRL names them: `text` (documents), `prompt` and `completion`, or `messages` (a list of
{role, content}). Documents are joined, an end token behind each, and cut into rows of equal length; of the
other kinds only completions and assistants' answers are labelled. All rows are in memory, 8 bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from pgmoe.errors import ConfigError
from pgmoe.training.tokens import UNLABELLED, Ids, Row, RowMaker

KINDS = (("text",), ("prompt", "completion"), ("messages",))


class Rows(Dataset[Row]):
    """What is trained on, in the files' order."""

    def __init__(self, rows: Sequence[Row], num_cut: int, num_dropped: int) -> None:
        self._rows = rows
        self.num_cut = num_cut
        """Rows that were longer than the limit and lost their end."""
        self.num_dropped = num_dropped
        """Rows of which nothing labelled was left, or in which nothing was."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def read_rows(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, length: int, *, encoder_decoder: bool
) -> Rows:
    """Read and tokenise; no row is longer than `length` tokens. Raises ConfigError for anything else."""
    maker = RowMaker(tokenizer)
    found: list[Row] = []
    kinds = {path: _kind(path) for path in paths}
    if len(set(kinds.values())) > 1:
        raise ConfigError("the files differ in their columns: " + _list(kinds))
    kind = kinds[paths[0]]
    if encoder_decoder and kind == ("text",):
        raise ConfigError(f"{paths[0]} has text; an encoder-decoder learns from prompt and completion")
    for path in paths:
        for start, batch in _batches(path, kind):
            try:
                found += maker.make(batch, kind, encoder_decoder=encoder_decoder)
            except ConfigError as error:
                raise ConfigError(f"{path}, rows from {start + 1}: {error}") from error
    if kind == ("text",):
        return _packed(found, length, paths)
    return _cut(found, length, paths, encoder_decoder)


@dataclass(frozen=True)
class Collator:
    """Rows as a batch: padded on the right to the longest, with a mask where anything was padded."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """input_ids (B, S) and labels (B, S or decoder's S) int64; attention_mask (B, S) where needed."""
        ids = [row.input_ids for row in rows]
        batch = {"input_ids": _padded(ids, self.pad_id)}
        batch["labels"] = _padded([row.labels for row in rows], UNLABELLED)
        lengths = torch.tensor([len(row) for row in ids])
        longest = int(lengths.max())
        if int(lengths.min()) < longest:
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return batch


def _padded(rows: Sequence[Ids], value: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return padded


def _packed(documents: Sequence[Row], length: int, paths: Sequence[Path]) -> Rows:
    ids = np.concatenate([document.input_ids for document in documents])
    if len(ids) < length:
        raise ConfigError(
            f"{_list(paths)}: {len(ids)} tokens of text; a row needs {length}: give more, or a smaller length"
        )
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return Rows([Row(row, row) for row in rows], 0, 0)


def _cut(found: Sequence[Row], length: int, paths: Sequence[Path], encoder_decoder: bool) -> Rows:
    rows, num_cut = [], 0
    for row in found:
        labels = row.labels[:length]
        scored = labels if encoder_decoder else labels[1:]  # a first token has nothing that predicts it
        if not (scored != UNLABELLED).any():
            continue
        num_cut += max(len(row.input_ids), len(row.labels)) > length
        rows.append(Row(row.input_ids[:length], labels))
    if not rows:
        raise ConfigError(
            f"{_list(paths)}: nothing to learn in the first {length} tokens of any of {len(found)} rows; "
            "give a larger length, or data with answers"
        )
    return Rows(rows, num_cut, len(found) - len(rows))


def _kind(path: Path) -> tuple[str, ...]:
    schema = _open(path).schema_arrow
    kind = next((kind for kind in KINDS if set(kind) == set(schema.names)), None)
    if kind is None:
        wanted = ", or ".join(" and ".join(kind) for kind in KINDS)
        raise ConfigError(f"{path} has the columns {', '.join(schema.names)}; they must be {wanted}")
    for name in kind:
        if not _fits(schema.field(name).type, messages=name == "messages"):
            wanted = "lists of {role, content}, both text" if name == "messages" else "text"
            raise ConfigError(f"{path}: column {name} holds {schema.field(name).type}; it must hold {wanted}")
    return kind


def _fits(kind: pa.DataType, *, messages: bool) -> bool:
    if not messages:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(
        kind.value_type
    ):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(name in fields and _fits(fields[name], messages=False) for name in ("role", "content"))


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error
    if not file.metadata.num_rows:
        raise ConfigError(f"{path} has no rows")
    return file


def _batches(path: Path, kind: Sequence[str]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """Pieces of a file by column, each with the number of rows before it."""
    start = 0
    try:
        for batch in _open(path).iter_batches(batch_size=1024, columns=list(kind)):
            yield start, batch.to_pydict()
            start += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error


def _list(paths: Any) -> str:
    if isinstance(paths, dict):
        return "; ".join(f"{path} has {' and '.join(kind)}" for path, kind in paths.items())
    return ", ".join(map(str, paths))
