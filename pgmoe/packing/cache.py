"""Packs that the engine makes itself, once for each model."""

from __future__ import annotations

import logging
from pathlib import Path

from pgmoe.errors import ConfigError
from pgmoe.models.checkpoint import Checkpoint
from pgmoe.models.pack import is_pack
from pgmoe.packing.pack import Progress, share_pack
from pgmoe.packing.source import source_of

_logger = logging.getLogger(__name__)


def cached_pack(model: str, pack_folder: str, progress: Progress | None = None) -> str:
    """The folder of a pack of `model` below `pack_folder`: made now unless it is there; a pack is its own.

    A model whose files have changed is another model. Several processes may call this at once. Raises
    ConfigError and the errors of `pack`.
    """
    checkpoint = Checkpoint.open(model)
    if checkpoint.pack is not None:
        return model
    name = model.rpartition("/")[2] if not Path(model).expanduser().is_dir() else Path(model).resolve().name
    out = Path(pack_folder).expanduser() / f"{name}-{source_of(checkpoint).digest[:16]}"
    if not is_pack(out):
        _logger.info("packing %s into %s", model, out)
        try:
            share_pack(model, out, progress=progress)
        except ConfigError as error:
            raise ConfigError(f"{error}; or set pack: off, or another pack_folder") from error
    return str(out)
