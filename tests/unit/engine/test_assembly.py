from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.assembly import assemble, resolve_device, resolve_dtype
from pgmoe.engine.engine import Engine
from pgmoe.engine.measured_needs import plan_for
from pgmoe.errors import BudgetTooSmall, CheckpointError, ConfigError, ExpertReadError
from pgmoe.layout import BlobLayout, ExpertFFN, ExpertLayer
from pgmoe.metrics.stats import ExpertStats
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import FAMILIES
from tests.support.left_over import open_files, own_threads
from tests.support.packs import packed


def config(folder: Path, **options: object) -> EngineConfig:
    return EngineConfig.parse({"model": str(folder), "device": "cpu", **options})


def layer(dtype: torch.dtype) -> ExpertLayer:
    return ExpertLayer("layer", BlobLayout.pack({"up": (2, 2)}, dtype), ExpertFFN(torch.relu), (), top_k=1)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        ("olmoe", torch.bfloat16),
        ("mixtral", torch.bfloat16),
    ],
    ids=[*FAMILIES, "olmoe-bfloat16", "mixtral-bfloat16"],
)
def test_the_smallest_budget_named_for_a_model_works(
    tiny: TinyCheckpoints, family: str, dtype: torch.dtype
) -> None:
    folder = tiny(family, dtype)
    with pytest.raises(BudgetTooSmall) as error:
        assemble(config(folder, device_memory="0"), ExpertStats())
    smallest = error.value.minimum_bytes
    with pytest.raises(BudgetTooSmall):
        assemble(config(folder, device_memory=smallest - 1), ExpertStats())
    assembly = assemble(config(folder, device_memory=smallest), ExpertStats())
    assert assembly.memory.num_slots == max(layer.top_k for layer in assembly.loaded.layers)
    assert assembly.memory.dense_bytes == assembly.loaded.loaded_bytes
    assert assembly.memory.total_bytes == smallest
    assembly.close()


def test_the_type_is_that_of_the_experts() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert resolve_dtype("auto", (layer(dtype), layer(dtype))) == dtype
        assert resolve_dtype(str(dtype).removeprefix("torch."), (layer(dtype),)) == dtype


def test_another_type_than_the_experts_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"'bfloat16': the experts are stored as float32 .* use dtype auto"):
        resolve_dtype("bfloat16", (layer(torch.float32),))


def test_another_type_than_quantised_experts_are_expanded_to_is_refused() -> None:
    quantised = replace(layer(torch.uint8), encoding="mxfp4", expanded=torch.bfloat16)
    assert resolve_dtype("auto", (quantised, layer(torch.bfloat16))) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"'float32': quantised experts are computed in bfloat16, .* auto"):
        resolve_dtype("float32", (quantised,))


def test_layers_of_several_types_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"several types .* convert the checkpoint to one"):
        resolve_dtype("auto", (layer(torch.float32), layer(torch.bfloat16)))


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert resolve_device("auto") == (here or torch.device("cpu"))


@pytest.mark.parametrize("name", ["meta", "gpu", "", "cpu:x", "cpu:7", "xla:0"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        resolve_device(name)


FAILURES: dict[str, tuple[dict[str, object], type[Exception]]] = {
    "policy": ({"policy": "none"}, ConfigError),
    "device": ({"device": "meta"}, ConfigError),
    "type": ({"dtype": "float16"}, ConfigError),
    "device memory": ({"device_memory": "1%"}, BudgetTooSmall),
    "host memory": ({"host_memory": "4KiB"}, BudgetTooSmall),
    "model": ({"model": "/no/such/model"}, CheckpointError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_options_that_cannot_be_honoured_leave_no_file_and_no_thread_behind(
    tiny: TinyCheckpoints, case: str
) -> None:
    options, kind = FAILURES[case]
    folder = tiny("mixtral")
    readers = own_threads()
    with pytest.raises(kind):
        assemble(config(folder, **options), ExpertStats())
    assert not open_files(folder)
    assert own_threads() <= readers


def test_a_failure_after_the_files_were_opened_closes_them(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder, readers = Path(shutil.copytree(tiny("mixtral"), tmp_path / "model")), own_threads()
    with pytest.raises(ConfigError, match="max_model_len 100000"):
        Engine(config(folder, max_model_len=100_000))
    assert not open_files(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        Engine(config(folder))
    assert not open_files(folder)
    assert own_threads() <= readers


def test_slots_that_memory_does_not_hold_are_refused_and_the_files_closed(
    tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("mixtral")
    planned = plan_for  # more slots than any tiny model has
    monkeypatch.setattr(
        "pgmoe.engine.assembly.plan_for", lambda *args: replace(planned(*args), num_slots=2**40)
    )
    with pytest.raises(
        ConfigError, match=r"slots of .*iB take more than the .*iB of RAM that are free; give a smaller"
    ):
        assemble(config(folder), ExpertStats())
    assert not open_files(folder)


@pytest.mark.parametrize(("host_memory", "num_held"), [("100%", 48), ("50%", 24), ("2.1%", 1)])
def test_copying_to_host_memory_is_counted_and_told_up_to_the_whole(
    tiny: TinyCheckpoints, host_memory: str, num_held: int
) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    folder = tiny("olmoe")
    stats = ExpertStats()
    assembly = assemble(config(folder, host_memory=host_memory), stats, progress)
    layers = assembly.loaded.layers
    assert sum(layer.num_experts for layer in layers) == 48
    total = num_held * layers[0].layout.weight_bytes
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert dict(stats.transfer_bytes) == {"disk_to_host": total}
    assembly.loaded.close()
    assert bool(open_files(folder)) == (num_held < 48)  # no longer needed if host memory holds all
    assembly.close()
    assert not open_files(folder)


def test_a_copy_to_host_memory_that_fails_closes_the_files(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mixtral"), tmp_path / "model"))

    def cut(done: int, total: int) -> None:
        os.truncate(folder / "model.safetensors", 4096)

    with pytest.raises(ExpertReadError, match=r"model\.safetensors"):
        assemble(config(folder, host_memory="50%", num_readers=1), ExpertStats(), cut)
    assert not open_files(folder)


def test_a_closed_assembly_holds_no_file_of_the_checkpoint(tiny: TinyCheckpoints) -> None:
    folder = tiny("mixtral", torch.float32, "200KB")
    assembly = assemble(config(folder), ExpertStats())
    assert len(open_files(folder)) > 1
    assembly.close()
    assert not open_files(folder)


@pytest.mark.parametrize("host_memory", ["0", "50%", "100%"])
def test_a_closed_assembly_of_a_pack_holds_none_of_its_files_and_has_ended_the_check(
    tiny: TinyCheckpoints, tmp_path: Path, host_memory: str
) -> None:
    folder, threads = packed(tiny("mixtral"), tmp_path / "pack"), own_threads()
    assembly = assemble(config(folder, host_memory=host_memory), ExpertStats())
    assert open_files(folder)
    assembly.close()
    assert not open_files(folder)
    assert own_threads() <= threads


def test_a_model_is_packed_on_its_first_start_with_progress_and_served_from_the_pack(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    options: dict[str, object] = {"pack": "auto", "pack_folder": str(tmp_path), "verify_pack": False}
    for _ in range(2):
        num_told = len(told)
        assembly = assemble(
            config(tiny("mixtral"), **options), ExpertStats(), lambda *sizes: told.append(sizes)
        )
        (pack,) = tmp_path.iterdir()
        assert open_files(pack)
        assert not open_files(tiny("mixtral"))
        assembly.close()
    assert len(told) == num_told > 0
    assert told[-1][0] == told[-1][1]
