"""A pack that was cut short is gone on with, and equals one made in one go."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgmoe.errors import ConfigError
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId
from pgmoe.packing.pack import pack
from tests.conftest import TinyCheckpoints
from tests.support.damage import edit_config, flip_bit
from tests.support.packs import contents, packed

KILLED = """
import os, pathlib, signal, sys
from pgmoe.packing.pack import pack

def kill(done, total):
    if done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

pack(sys.argv[1], pathlib.Path(sys.argv[2]), progress=kill)
"""


class Interrupted(Exception):
    pass


class CountingStore(DiskStore):
    """Remembers what was read of the model."""

    read_experts: list[ExpertId]

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        self.read_experts.append(expert)
        return super().read(expert, slot)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[ExpertId]:
    """The experts that are read of the model while it is packed."""
    monkeypatch.setattr("pgmoe.packing.writer.DiskStore", CountingStore)
    monkeypatch.setattr(CountingStore, "read_experts", [], raising=False)
    return CountingStore.read_experts


def pack_until(model: Path, out: Path, num_bytes: int) -> None:
    """Pack and give up after so many bytes."""

    def stop(done: int, total: int) -> None:
        if done >= num_bytes:
            raise Interrupted

    with pytest.raises(Interrupted):
        pack(str(model), out, progress=stop)
    assert not out.exists()


def test_a_killed_process_s_work_is_gone_on_with(
    tiny: TinyCheckpoints, tmp_path: Path, reads: list[ExpertId]
) -> None:
    model, out = tiny("mixtral"), tmp_path / "pack"
    expected = contents(packed(model, tmp_path / "expected"))
    num_experts = len(reads)
    reads.clear()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(model), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert contents(packed(model, out)) == expected
    assert 0 < len(reads) < num_experts
    assert reads == [ExpertId(i, e) for i in range(3) for e in range(8)][-len(reads) :]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "pack"]


def test_wherever_it_stops_the_pack_is_the_same_in_the_end(
    tiny: TinyCheckpoints, tmp_path: Path, reads: list[ExpertId]
) -> None:
    model, out = tiny("mixtral", torch.bfloat16), tmp_path / "pack"
    expected = contents(packed(model, tmp_path / "expected"))
    total = sum(len(data) for name, data in expected.items() if name.endswith(".safetensors"))
    reads.clear()
    for share in (0, 20, 50, 51, 80, 100):
        pack_until(model, out, total * share // 100)
    assert contents(packed(model, out)) == expected
    assert len(reads) == len(set(reads)) == 3 * 8  # each one once


@pytest.mark.parametrize("file", ["dense.safetensors", "experts-00000.safetensors"])
@pytest.mark.parametrize("fault", ["bit", "short", "gone"])
def test_what_stands_is_compared_with_its_checksum_and_written_anew_where_it_is_wrong(
    tiny: TinyCheckpoints, tmp_path: Path, file: str, fault: str
) -> None:
    model, out = tiny("mixtral"), tmp_path / "pack"
    expected = contents(packed(model, tmp_path / "expected"))
    pack_until(model, out, len(expected["dense.safetensors"]) + len(expected["experts-00000.safetensors"]))
    path = tmp_path / ".pack.partial" / "pack" / file
    if fault == "bit":
        flip_bit(path, path.stat().st_size // 2)
    elif fault == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert contents(packed(model, out)) == expected


def test_the_work_of_another_model_is_not_mixed_in(
    tiny: TinyCheckpoints, tmp_path: Path, reads: list[ExpertId]
) -> None:
    model, other, out = tiny("mixtral"), tmp_path / "other", tmp_path / "pack"
    shutil.copytree(model, other)
    edit_config(other, rope_theta=5000.0)
    expected = contents(packed(other, tmp_path / "expected"))
    reads.clear()
    pack_until(model, out, sum(map(len, expected.values())) // 2)
    reads.clear()
    assert contents(packed(other, out)) == expected
    assert len(reads) == 3 * 8


def test_who_packs_to_the_same_place_meanwhile_is_refused_and_spoils_nothing(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    model, out = tiny("mixtral"), tmp_path / "pack"
    refused = []

    def second(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(ConfigError, match="another process is writing it") as error:
                pack(str(model), out)
            refused.append(error)

    pack(str(model), out, progress=second)
    assert refused
    assert contents(out) == contents(packed(model, tmp_path / "expected"))
