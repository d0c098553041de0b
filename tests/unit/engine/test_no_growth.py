"""An engine that has answered thousands of requests is as large as one that has answered hundreds."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.memory import return_large_blocks
from tests.conftest import TinyCheckpoints
from tests.support.mixtures import play, random_mixture

ALLOWED_BYTES = 8 * 2**20
"""Python's heap has holes, and pages of them are not given back."""


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/status", encoding="ascii") as table:
        return next(int(line.split()[1]) * 1024 for line in table if line.startswith("RssAnon"))


def test_two_thousand_requests_leave_nothing_behind(tiny: TinyCheckpoints) -> None:
    return_large_blocks()
    folder: Path = tiny("mixtral", torch.float32)
    options = {"model": str(folder), "device": "cpu", "device_memory": "50%", "kv_memory": "1MiB"}
    engine = Engine(EngineConfig.parse({**options, "max_waiting": 10_000}))
    before = 0
    for hundred in range(20):
        play(engine, random_mixture(hundred, 100, 256, 150, 12))
        if hundred == 4:
            before = resident_bytes()
    assert resident_bytes() - before < ALLOWED_BYTES
    engine._scheduler.check_integrity()
    assert engine._scheduler.num_used_blocks == 0
    assert not engine._sequences
    engine.close()
