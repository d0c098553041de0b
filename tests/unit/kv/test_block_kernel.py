"""That the kernels compile, for devices that are not there. test_block_attention has what they compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this system")

LEAST_SHARED_BYTES = 99 * 2**10
"""What a tile may have on the smallest of NVIDIA's devices since 2020 (compute capability 8.6)."""


def test_kernels_compile_and_fit_the_smallest_device(tmp_path: Path) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled_kernels"], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    needs = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(needs) == 6
    assert max(need["shared_bytes"] for need in needs) <= LEAST_SHARED_BYTES, needs
