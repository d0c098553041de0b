from __future__ import annotations

import json

import pytest
from torch import Tensor
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.experts.stores.disk import DiskStore
from pgmoe.layout import ExpertId
from tests.conftest import TinyCheckpoints

LAYER = "model.layers.1.mlp.experts"


class BadDisk(DiskStore):
    """Turns a bit around in every expert of layer 1 on its way into a slot, as a broken disk or cable may."""

    def read(self, expert: ExpertId, slot: Tensor) -> int:
        num_bytes = super().read(expert, slot)
        if expert.layer == 1:
            slot[self.starts(expert)["down"] + 3] ^= 0x80
        return num_bytes


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgmoe.experts.stores.opening.DiskStore", BadDisk)


def test_a_model_that_passes_is_told_in_one_line_with_status_0(tiny: TinyCheckpoints) -> None:
    run = CliRunner().invoke(app, ["selftest", str(tiny("mixtral")), "--tokens", "3"])
    assert run.exit_code == 0, run.output
    (line,) = run.stdout.splitlines()
    assert line.startswith("pass: ")
    assert "3 MoE layers over 3 tokens, equal to the bit; equal to all experts resident" in line


def test_the_result_can_be_had_as_json(tiny: TinyCheckpoints) -> None:
    run = CliRunner().invoke(app, ["selftest", str(tiny("mixtral")), "--tokens", "3", "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert result.pop("num_experts_checked") >= 3 * 3 * 2
    assert result == {
        "passed": True,
        "num_layers": 3,
        "num_tokens": 3,
        "difference": None,
        "resident_equal": True,
    }


@pytest.mark.usefixtures("bad_disk")
@pytest.mark.parametrize(
    "options", [[], ["--host-memory", "100%"], ["--host-memory", "50%"], ["--device-memory", "9%"]]
)
def test_a_wrong_bit_is_told_with_its_layer_and_status_1(tiny: TinyCheckpoints, options: list[str]) -> None:
    run = CliRunner().invoke(app, ["selftest", str(tiny("mixtral")), "--tokens", "3", *options])
    assert run.exit_code == 1, run.output
    assert run.stdout.startswith(f"FAIL: {LAYER} differs first, in call 0, by up to ")


@pytest.mark.usefixtures("bad_disk")
def test_a_wrong_bit_has_status_1_with_json_too(tiny: TinyCheckpoints) -> None:
    run = CliRunner().invoke(app, ["selftest", str(tiny("mixtral")), "--tokens", "3", "--json"])
    assert run.exit_code == 1, run.output
    result = json.loads(run.stdout)
    assert result["passed"] is False
    assert result["difference"]["layer"] == LAYER
