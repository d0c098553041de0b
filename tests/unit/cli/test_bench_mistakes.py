"""What a user may get wrong with `pgmoe bench`: told before anything is measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pgmoe.cli.main import app
from pgmoe.errors import PgmoeError
from tests.conftest import TinyCheckpoints
from tests.support.packs import packed
from tests.unit.simulation.conftest import random_trace


def told(tmp_path: Path, *arguments: str) -> str:
    """The error that ends `pgmoe bench`."""
    with pytest.raises(PgmoeError) as error:
        CliRunner().invoke(
            app,
            ["bench", *arguments],
            catch_exceptions=False,
            env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
    return str(error.value)


@pytest.mark.parametrize("command", ["curve", "prefetch", "profile"])
@pytest.mark.parametrize(
    ("option", "fault"),
    [
        (["--gating", "typo"], "gating 'typo' is unknown"),
        (["--option", "polcy=lru"], "polcy: there is no such option; there are .*policy"),
        (["--option", "policy=typo"], "policy 'typo'"),
        (["--pack", "/nowhere/pack"], "/nowhere/pack is no pack; `pgmoe pack` makes one"),
    ],
)
def test_an_option_that_no_engine_takes(
    tiny: TinyCheckpoints, tmp_path: Path, command: str, option: list[str], fault: str
) -> None:
    model = str(tiny("olmoe", torch.bfloat16))
    assert re.search(fault, told(tmp_path, command, model, *option, "--out", str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--twin-gating", "speculative"], "name one with --twin"),
        (["--twin", "OTHER", "--pack", "PACK"], "give it without --twin"),
        (["--twin", "OTHER", "--twin-gating", "typo"], "gating 'typo' is unknown"),
        (["--twin", "BARE"], "is no twin of"),
    ],
)
def test_a_twin_that_is_none(tiny: TinyCheckpoints, tmp_path: Path, options: list[str], fault: str) -> None:
    model, bare = str(tiny("olmoe", torch.bfloat16)), str(tiny("mixtral", torch.bfloat16))
    pack = tmp_path / "pack"
    if "PACK" in options:
        packed(Path(model), pack)
    named = {"OTHER": model, "BARE": bare, "PACK": str(pack)}
    assert fault in told(tmp_path, "prefetch", model, *(named.get(option, option) for option in options))


def test_a_rate_without_its_second(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = str(tiny("olmoe", torch.bfloat16))
    assert "'25GB' is not a rate" in told(tmp_path, "curve", model, "--emulate", "25GB")


@pytest.mark.parametrize("command", ["curve", "reads", "profile"])
def test_a_model_that_is_not_there(tmp_path: Path, command: str) -> None:
    assert "no such folder" in told(tmp_path, command, str(tmp_path / "nowhere"))


def test_a_results_folder_that_is_a_file(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = told(tmp_path, "reads", str(tiny("olmoe")), "--out", str(tmp_path / "file"))
    assert "cannot write to" in error


def test_policies_over_a_trace_of_one_prompt(tmp_path: Path) -> None:
    trace = random_trace(0, num_steps=30)
    first = tuple(step for step in trace.steps if step.sequence == trace.steps[0].sequence)
    path = tmp_path / "one.parquet"
    replace(trace, steps=first).save(path)
    assert "is of one prompt; record two or more" in told(tmp_path, "policies", str(path))


def test_a_text_of_a_few_lines_to_train_on(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("One line.\nTwo.\n")
    assert "has 2 lines, each a document" in told(tmp_path, "small-moe", str(text))
