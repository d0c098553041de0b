from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgmoe.engine.engine import Engine
from tests.conftest import TinyCheckpoints
from tests.support.stepping import load


@pytest.fixture(scope="module")
def shared(tiny: TinyCheckpoints) -> Iterator[Engine]:
    engine = load(tiny("mixtral"), max_running=2, max_waiting=2)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """Two places and a queue of two; empty before and after each test."""
    yield shared
    assert not shared.has_work
    assert (shared.stats.num_running, shared.stats.num_waiting) == (0, 0)
