from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.llama_cpp import LlamaCppArm
from pgmoe.bench.gguf_model import write_gguf
from pgmoe.bench.job import Job, Place
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.worker import Worker
from tests.support.checkpoints import save_tiny
from tests.unit.bench.limits import needs_limits

OLMOE = OlmoeShape(256, 64, 3, 4, 16, 4, 48)  # llama.cpp wants as many key as query heads
JOB = Job.random_stream(vocab_size=256, prompt_length=12, num_tokens=24)


def _save(family: str, folder: Path) -> None:
    if family == "olmoe":
        save_random_olmoe(folder, OLMOE, torch.device("cpu"))
    else:
        save_tiny(family, folder, torch.float32)


def test_no_library_of_ours_lies_in_a_peers_process() -> None:
    code = (
        "import sys; import pgmoe.bench.worker_process, pgmoe.bench.arms.llama_cpp; "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.peers
@pytest.mark.parametrize("load_mode", ["none", "mmap"])
@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_llama_cpp_says_what_our_engine_says(family: str, load_mode: str, tmp_path: Path) -> None:
    _save(family, tmp_path / "model")
    write_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", torch.float32)
    place = Place(str(tmp_path / "model"), "cpu", 1, "default", str(tmp_path))
    ours = EngineArm("ours").open(place)
    theirs = LlamaCppArm("theirs", str(tmp_path / "model.gguf"), load_mode).open(place)  # type: ignore[arg-type]
    try:
        expected, answer = ours.answer(JOB), theirs.answer(JOB)
        again = theirs.answer(JOB)
    finally:
        ours.close()
        theirs.close()
    same = sum(a == b for a, b in zip(expected.tokens, answer.tokens, strict=True))
    assert same >= 22  # it rounds elsewhere
    assert len(set(expected.tokens)) > 8
    assert answer.tokens == again.tokens
    assert answer.first_token_s > 0
    assert answer.decode_s > 0


@pytest.mark.peers
@needs_limits
def test_a_mapped_model_runs_within_less_memory_than_it_has(tmp_path: Path) -> None:
    _save("olmoe", tmp_path / "model")
    write_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", torch.float32)
    place = Place(str(tmp_path / "model"), "cpu", 1, "default", str(tmp_path))
    arm = LlamaCppArm("mapped", str(tmp_path / "model.gguf"), "mmap")
    with Worker(arm, place, limit_bytes=256 * 2**20) as worker:
        worker.loaded()
        assert len(worker.measure(JOB).answer.tokens) == JOB.num_tokens
