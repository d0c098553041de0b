from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.checkpoints import save_tiny
from tests.support.quantised import save_kind

# How long an example takes is the machine's affair.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Several processes may share the suite: a file's tests stay together, and those that share a server.

    xdist 3.8's own groups are lost on pytest 9.2, without a word: it writes them into tests' names, which
    pytest makes anew.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0])
            return str(file.parent if file.parent.name == "serve" else file)

    return ByFile(config, log)


TinyCheckpoints = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """`tiny(family, dtype, max_shard_size)`: a tiny checkpoint, written once. Copy it before changing it."""
    root = tmp_path_factory.mktemp("tiny")
    written: dict[tuple[str, torch.dtype, str], Path] = {}

    def checkpoint(family: str, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB") -> Path:
        key = (family, dtype, max_shard_size)
        if key not in written:
            folder = root / f"{family}-{len(written)}"
            written[key] = save_tiny(family, folder, dtype, max_shard_size=max_shard_size)
        return written[key]

    return checkpoint


QuantisedCheckpoints = Callable[..., Path]


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> QuantisedCheckpoints:
    """`quantised(kind, max_shard_size)`: a tiny quantised checkpoint, written once. Copy it to change it."""
    root = tmp_path_factory.mktemp("quantised")
    written: dict[tuple[str, str], Path] = {}

    def checkpoint(kind: str, max_shard_size: str = "1GB") -> Path:
        key = (kind, max_shard_size)
        if key not in written:
            written[key] = save_kind(kind, root / str(len(written)), max_shard_size)
        return written[key]

    return checkpoint
