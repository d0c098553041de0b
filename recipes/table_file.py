"""Parquet files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pgmoe.errors import ConfigError


def write_table(rows: Sequence[dict[str, object]], schema: pa.Schema, path: Path) -> None:
    """Write rows, in their order; makes the folder. Raises ConfigError."""
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; name another folder") from error
    finally:
        with suppress(OSError):  # what kept it from being written may keep it from being removed
            partial.unlink()


def read_table(path: Path) -> list[dict[str, Any]]:
    """All rows of a file. Raises ConfigError."""
    try:
        rows: list[dict[str, Any]] = parquet.ParquetFile(path).read().to_pylist()
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; `make data` writes it") from None
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is no readable Parquet file: {error}") from error
    return rows
