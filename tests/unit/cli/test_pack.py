from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.models.pack import read_pack
from tests.conftest import TinyCheckpoints
from tests.support.damage import flip_bit
from tests.support.packs import packed


def test_a_pack_is_summed_up_in_a_line_and_can_be_looked_at_and_verified(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    out = str(tmp_path / "pack")
    run = CliRunner().invoke(app, ["pack", str(tiny("mixtral")), out])
    assert run.exit_code == 0, run.output
    (line,) = run.stdout.splitlines()
    assert line.startswith(f"{out}: 24 experts of 72.0 KiB (a slot of the checkpoint took 80.0 KiB), ")
    assert "Packing" in run.stderr
    assert CliRunner().invoke(app, ["info", out]).exit_code == 0
    run = CliRunner().invoke(app, ["pack", "--verify", out])
    assert run.exit_code == 0, run.output
    assert run.stdout == "28 parts, 2.0 MiB: all as written\n"
    assert "Verifying" in run.stderr


def test_the_result_can_be_had_as_json(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    run = CliRunner().invoke(app, ["pack", str(tiny("mixtral")), str(out), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout) == {
        "folder": str(out),
        "num_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "num_experts": 24,
        "dense_bytes": (out / "dense.safetensors").stat().st_size,
        "blob_bytes": read_pack(out).layers[0].blob_bytes,
        "unpacked_slot_bytes": 81920,
    }


def test_corrupt_parts_are_listed_with_status_1(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = packed(tiny("mixtral"), tmp_path / "pack")
    layer = read_pack(out).layers[2]
    flip_bit(out / layer.file, layer.blob_offset(3) + 70)
    run = CliRunner().invoke(app, ["pack", "--verify", str(out)])
    assert run.exit_code == 1
    fault, verdict = run.stdout.splitlines()
    assert fault.startswith(f"{layer.file}: expert 3 of {layer.name}, ")
    assert verdict.endswith(": 1 corrupt")
    run = CliRunner().invoke(app, ["pack", "--verify", "--json", str(out)])
    assert run.exit_code == 1
    (found,) = json.loads(run.stdout)["corrupt"]
    assert {found[key] for key in ("file", "layer", "expert", "offset")} == {
        layer.file, layer.name, 3, layer.blob_offset(3),
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [["model"], ["--verify", "pack", "out"]])
def test_where_to_write_is_asked_for_when_packing_and_only_then(arguments: list[str]) -> None:
    run = CliRunner().invoke(app, ["pack", *arguments])
    assert run.exit_code == 2
    assert "give MODEL and OUT, or --verify and the pack" in run.stderr
