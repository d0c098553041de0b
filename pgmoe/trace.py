"""A recorded routing: which experts every token of every forward pass used. A trace is a Parquet file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pgmoe.errors import ConfigError

VERSION = 1
_KEY = b"pgmoe.trace"


def _column(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_column("element", kind))


_SCHEMA = pa.schema(
    [
        _column("step", pa.int64()),
        _column("sequence", pa.string()),
        _column("token", pa.int32()),
        _column("layer", pa.int16()),
        _column("experts", _list_of(pa.int16())),
        _column("scores", _list_of(pa.float32())),
        _column("predicted", _list_of(pa.int16()), nullable=True),
    ]
)


@dataclass(frozen=True)
class TracedLayer:
    """One MoE layer in one forward pass of N tokens, K experts each."""

    layer: int
    ids: tuple[tuple[int, ...], ...]
    """(N, K): each token's experts, tokens without any have an empty row."""
    scores: tuple[tuple[float, ...], ...]
    """(N, K): their routing weights."""
    predicted: tuple[tuple[int, ...], ...] = ()
    """(N, K): what this layer's own gate chose from the previous MoE layer's input; empty where unknown."""


def together(sequences: Sequence[str]) -> str:
    """The name under which passes of these sequences are recorded."""
    return "+".join(sequences)


@dataclass(frozen=True)
class TracedStep:
    """One forward pass, its MoE layers in execution order."""

    sequence: str
    """Whose tokens it computed; several joined, see `together`."""
    layers: tuple[TracedLayer, ...]


@dataclass(frozen=True)
class Trace:
    """Forward passes in the order in which they ran, and the model's shape."""

    model: str
    experts_per_layer: tuple[int, ...]
    top_k: int
    expert_bytes: int
    """Of one expert's weights."""
    steps: tuple[TracedStep, ...]

    def save(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all: a row for each step, token and layer.

        Scores are rounded to float32. A layer without tokens, or a step without layers, has no row and is
        not in the file. Raises ConfigError where the file system refuses.
        """
        header = _Header(
            version=VERSION,
            model=self.model,
            experts_per_layer=self.experts_per_layer,
            top_k=self.top_k,
            expert_bytes=self.expert_bytes,
        )
        schema = _SCHEMA.with_metadata({_KEY: header.model_dump_json()})
        table = pa.Table.from_pylist(list(_rows(self.steps)), schema=schema)
        partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            parquet.write_table(table, partial, compression="zstd")
            os.replace(partial, path)
        except OSError as error:
            raise ConfigError(f"cannot write the trace {path}: {error}") from error
        finally:
            with suppress(OSError):  # what kept it from being written may keep it from being removed
                partial.unlink()

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what `save` wrote. Raises ConfigError for anything else."""
        try:
            table = parquet.ParquetFile(path).read()
        except FileNotFoundError:
            raise ConfigError(f"there is no trace {path}; `pgmoe trace` records one") from None
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{path} is no readable Parquet file: {error}") from error
        header = _read_header(path, table.schema)
        steps = tuple(_steps(table))
        _check_range(path, header, steps)
        return cls(header.model, header.experts_per_layer, header.top_k, header.expert_bytes, steps)


class _Header(BaseModel):
    """What the file's metadata says of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int
    model: str
    experts_per_layer: tuple[int, ...]
    top_k: int
    expert_bytes: int


def _read_header(path: Path, schema: pa.Schema) -> _Header:
    text = (schema.metadata or {}).get(_KEY)
    if text is None:
        raise ConfigError(f"{path} is a Parquet file but no trace; `pgmoe trace` records one")
    try:
        version = json.loads(text).get("version")
        if version != VERSION:
            raise ConfigError(
                f"{path} is a trace of version {version!r}, and this pgmoe reads {VERSION}; record it anew"
            )
        header = _Header.model_validate_json(text)
    except (AttributeError, json.JSONDecodeError, ValidationError) as error:
        raise ConfigError(f"{path}: the trace's metadata is damaged; record it anew ({error})") from None
    if not schema.equals(_SCHEMA):
        raise ConfigError(f"{path}: the trace has other columns than {', '.join(_SCHEMA.names)}")
    return header


def _check_range(path: Path, header: _Header, steps: tuple[TracedStep, ...]) -> None:
    for index, step in enumerate(steps):
        for traced in step.layers:
            if not 0 <= traced.layer < len(header.experts_per_layer):
                raise ConfigError(
                    f"{path}: step {index} has layer {traced.layer} of {len(header.experts_per_layer)}"
                )
            count = header.experts_per_layer[traced.layer]
            named = {expert for row in (*traced.ids, *traced.predicted) for expert in row}
            if named and not 0 <= min(named) <= max(named) < count:
                raise ConfigError(
                    f"{path}: step {index}, layer {traced.layer} names an expert outside 0 to {count - 1}"
                )


def _rows(steps: tuple[TracedStep, ...]) -> Iterator[dict[str, Any]]:
    for index, step in enumerate(steps):
        for traced in step.layers:
            for token, (experts, scores) in enumerate(zip(traced.ids, traced.scores, strict=True)):
                yield {
                    "step": index,
                    "sequence": step.sequence,
                    "token": token,
                    "layer": traced.layer,
                    "experts": experts,
                    "scores": scores,
                    "predicted": traced.predicted[token] if traced.predicted else None,
                }


def _steps(table: pa.Table) -> Iterator[TracedStep]:
    """The rows put together again; each token 0 begins a layer."""
    for _, of_step in groupby(table.to_pylist(), key=lambda row: row["step"]):
        layers: list[list[dict[str, Any]]] = []
        for row in of_step:
            if row["token"] == 0 or not layers:
                layers.append([])
            layers[-1].append(row)
        yield TracedStep(layers[0][0]["sequence"], tuple(map(_layer, layers)))


def _layer(rows: list[dict[str, Any]]) -> TracedLayer:
    return TracedLayer(
        layer=rows[0]["layer"],
        ids=tuple(tuple(row["experts"]) for row in rows),
        scores=tuple(tuple(row["scores"]) for row in rows),
        predicted=tuple(tuple(row["predicted"]) for row in rows if row["predicted"] is not None),
    )
