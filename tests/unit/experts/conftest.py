from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertLayer
from tests.support.expert_files import write_layers


@pytest.fixture
def layers(tmp_path: Path) -> tuple[ExpertLayer, ...]:
    """Two layers of a few experts, in files."""
    return write_layers(tmp_path)


@pytest.fixture
def store(layers: tuple[ExpertLayer, ...]) -> Iterator[DiskStore]:
    """Their disk store."""
    store = DiskStore(layers)
    yield store
    store.close()
