"""A pack serves what its checkpoint serves, to the bit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.errors import ExpertReadError
from pgmoe.models.pack import read_pack
from pgmoe.selftest import run_selftest
from tests.conftest import TinyCheckpoints
from tests.support.damage import flip_bit
from tests.support.packs import packed
from tests.support.runs import Prompts, answer, run

PROMPTS = Prompts.random(seed=21)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"device_memory": "30%"}),
        (torch.bfloat16, {"device_memory": "30%", "host_memory": "50%", "direct_io": False}),
    ],
    ids=["disk", "disk and RAM"],
)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "nllb_moe"])
def test_a_pack_gives_the_same_bits_as_its_checkpoint(
    tiny: TinyCheckpoints, tmp_path: Path, family: str, dtype: torch.dtype, options: dict[str, object]
) -> None:
    model = tiny(family, dtype, "200KB")
    found = run(packed(model, tmp_path / "pack"), PROMPTS, **options)
    assert found.stats.evictions.total() > 0
    found.same_as(run(model, PROMPTS))


def test_a_model_packed_on_first_start_gives_the_same_bits(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = tiny("mixtral", torch.bfloat16)
    resident = run(model, PROMPTS)
    for _ in range(2):
        found = run(model, PROMPTS, pack="auto", pack_folder=str(tmp_path), device_memory="30%")
        found.same_as(resident)
    assert len(list(tmp_path.glob("*/pack.json"))) == 1


def test_a_pack_passes_the_selftest(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    pack = packed(tiny("gpt_oss"), tmp_path / "pack")
    report = run_selftest(EngineConfig.parse({"model": str(pack), "device_memory": "30%"}), 3)
    assert report.passed


def test_a_corrupt_expert_fails_the_requests_that_need_it_and_no_other(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    model = tiny("mixtral")
    pack = packed(model, tmp_path / "pack")
    layer = read_pack(pack).layers[1]
    flip_bit(pack / layer.file, layer.blob_offset(3))
    whole, damaged = (Engine(EngineConfig.parse({"model": str(m), "device": "cpu"})) for m in (model, pack))
    for thread in threading.enumerate():
        if thread.name == "pgmoe-pack-check":
            thread.join()
    refusals = set()
    num_answered = 0
    for token in range(5, 35):
        (expected,) = answer(whole, (token,), 1)
        try:
            (found,) = answer(damaged, (token,), 1)
        except ExpertReadError as error:
            refusals.add(str(error).partition(" from byte ")[0])
        else:
            assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
            num_answered += 1
    assert refusals == {f"expert 3 of {layer.name}: {pack / layer.file}"}
    assert num_answered
    whole.close()
    damaged.close()
