from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from pgmoe.bench.guesses import measure_guesses
from pgmoe.bench.guesses_result import GuessesResult
from pgmoe.bench.job import Place
from pgmoe.bench.result_file import draw_result, load_result
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from pgmoe.training.pregate import pregate
from tests.support.checkpoints import save_tiny, save_tiny_chat

DOCUMENTS = ["The quick brown fox jumps over the lazy dog.", "Sphinx of black quartz, judge my vow! " * 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("guesses") / "tiny-chat")


def measure(model: Path, distances: tuple[int, ...] = (1, 2), pre_gated: Path | None = None) -> GuessesResult:
    place = Place(str(model), "cpu", torch.get_num_threads(), "", "")
    twin = None if pre_gated is None else str(pre_gated)
    return measure_guesses(place, DOCUMENTS, distances, twin, lambda *_: None)


def test_each_distance_has_the_layers_that_lie_so_far_behind_another(model: Path) -> None:
    found = measure(model)
    one, two = found.recalls
    assert [share is None for share in one.by_layer] == [True, False, False]
    assert [share is None for share in two.by_layer] == [True, True, False]
    assert all(0 < share < 1 for line in found.recalls for share in line.by_layer if share is not None)
    assert found.chance == 2 / 8
    assert found.pre_gated is None


def test_a_model_agrees_with_itself(model: Path) -> None:
    found = measure(model, pre_gated=model)
    assert found.pre_gated is not None
    assert found.pre_gated.by_layer == (1, 1, 1)


def test_what_a_new_pre_gate_commits_to_is_what_its_router_would_have_guessed(
    model: Path, tmp_path: Path
) -> None:
    """Until the second layer, where models part ways, both see the same."""
    found = measure(model, (1,), pregate(str(model), tmp_path / "twin", start="next").folder)
    assert found.pre_gated is not None
    assert found.pre_gated.by_layer[0] == 1
    assert found.pre_gated.by_layer[1] == found.recalls[0].by_layer[1] < 1


def test_a_result_is_saved_shown_and_drawn(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(DOCUMENTS))
    out = tmp_path / "results"
    run = CliRunner().invoke(
        app, ["bench", "guesses", str(model), str(text), "--distance", "1", "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    assert "guessed 1 layer ahead" in run.stdout
    (file,) = out.glob("guesses-tiny-chat-*.json")
    draw_result(load_result(file), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_what_cannot_be_measured_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer"):
        measure(save_tiny("mixtral", tmp_path / "bare", torch.float32))
    other = save_tiny("qwen2_moe", tmp_path / "other", torch.float32)
    with pytest.raises(ConfigError, match="has 2 MoE layers, not 3"):
        measure(model, pre_gated=other)
    with pytest.raises(ConfigError, match=r"no router can be asked 3 layers ahead; it has 3 MoE layers"):
        measure(model, (1, 3))
    twin = pregate(str(model), tmp_path / "twin").folder
    with pytest.raises(ConfigError, match="name a conventional twin"):
        measure(twin)
    parquet.write_table(pa.table({"prompt": ["no text"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="cannot read the text"):
        CliRunner().invoke(
            app, ["bench", "guesses", str(model), str(tmp_path / "other.parquet")], catch_exceptions=False
        )
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; give a document a line"):
        CliRunner().invoke(
            app, ["bench", "guesses", str(model), str(tmp_path / "empty.txt")], catch_exceptions=False
        )
