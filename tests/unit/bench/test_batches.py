"""Batches from start to picture on a tiny checkpoint, processes included."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from pgmoe.bench.arms.clock import TokenClock
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.stepwise import answer_stepwise
from pgmoe.bench.batches import batch_jobs, check_gatings
from pgmoe.bench.batches_result import BatchesResult, BatchPoint
from pgmoe.bench.job import Job, Place
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from pgmoe.training.trainable import load_whole
from tests.support.checkpoints import save_tiny, save_tiny_chat
from tests.unit.bench.results import MACHINE, series

NUM_TOKENS = 10
DOCUMENTS = [f"{number} " + "sphinx of black quartz, judge my vow! " * 30 for number in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("batches") / "tiny-chat")


def test_every_sequence_of_a_batch_is_fed_its_own_tokens(model: Path) -> None:
    (job,) = batch_jobs(str(model), DOCUMENTS, [3], NUM_TOKENS)
    whole = load_whole(model, torch.float32)
    fed: list[torch.Tensor] = []
    whole.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True)
    answer = answer_stepwise(whole, torch.device("cpu"), job, TokenClock())
    assert len(answer.tokens) == NUM_TOKENS
    together = torch.cat(fed, dim=1)
    rows = [(*job.prompt, *job.forced), *job.beside]  # type: ignore[misc]
    assert len(set(rows)) == 3
    assert together.tolist() == [list(row[:-1]) for row in rows]


def test_the_first_sequence_is_answered_as_if_it_were_alone(model: Path) -> None:
    """All resident and with a quarter of the experts, where batches use more experts than there are slots."""
    alone, job = batch_jobs(str(model), DOCUMENTS, [1, 4], NUM_TOKENS)
    assert alone == Job(job.prompt, NUM_TOKENS, job.forced)
    place = Place(str(model), "cpu", 1, "", "")
    found = []
    for memory, one in (("100%", alone), ("100%", job), ("25%", job)):
        with closing(EngineArm("ours", memory).open(place)) as engine:
            found.append(engine.answer(one))
    assert found[0].tokens == found[1].tokens == found[2].tokens
    offloaded = found[2].traffic
    assert offloaded is not None
    assert offloaded.misses > 0
    assert offloaded.stall_s > 0
    assert sum(offloaded.layer_stall_s) == pytest.approx(offloaded.stall_s)
    assert len(offloaded.layer_stall_s) == 3


def test_what_makes_no_batch_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch of 5 needs .* 42 tokens or more, the text has 4"):
        batch_jobs(str(model), [*DOCUMENTS, "short"], [1, 5], NUM_TOKENS)
    with pytest.raises(ConfigError, match="named once, got 2, 2"):
        batch_jobs(str(model), DOCUMENTS, [2, 2], NUM_TOKENS)
    bare = save_tiny("mixtral", tmp_path / "bare", torch.float32)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        batch_jobs(str(bare), DOCUMENTS, [1], NUM_TOKENS)
    both = save_tiny("switch_transformers", tmp_path / "both", torch.float32)
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        batch_jobs(str(both), DOCUMENTS, [1], NUM_TOKENS)
    with pytest.raises(ConfigError, match="named once, got auto, auto"):
        check_gatings(["auto", "auto"])
    with pytest.raises(ConfigError, match="'oracle' replays"):
        check_gatings(["oracle"])


def made_up(*points: BatchPoint) -> BatchesResult:
    return BatchesResult(
        name="batches-made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234",
        machine=MACHINE,
        conditions={"workload": "five tokens"},
        share=25.0,
        batches=points,
    )


def made_up_point(batch: int, *decode_s: float) -> BatchPoint:
    lines = zip(("resident", "on_demand", "auto"), decode_s, strict=True)
    return BatchPoint(batch, tuple(series(line, [second], (1, 2, 3, 4, 5)) for line, second in lines))


def test_speeds_are_of_all_sequences_and_ratios_of_one_batch_size() -> None:
    result = made_up(made_up_point(1, 1.0, 4.0, 2.0), made_up_point(8, 2.0, 4.0, 5.0))
    one, eight = result.batches
    assert one.speeds("auto") == [2.0]
    assert eight.speeds("auto") == [6.4]
    text = render_result(result)
    assert "- batch 1: **auto** decodes 2.00 times as fast as **on_demand**" in text
    assert "- batch 8: **auto** decodes 0.80 times as fast as **on_demand**" in text
    assert "| 8 | on_demand | 8.0 | 0.50 |" in text


def test_a_result_is_saved_shown_and_drawn(model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.parquet", tmp_path / "results"
    parquet.write_table(pa.table({"text": [*DOCUMENTS, None, ""], "source": ["made up"] * 6}), text)
    command = ["bench", "batches", str(model), str(text), "--batch", "4", "--gating", "on_demand"]
    options = ["--rounds", "1", "--tokens", str(NUM_TOKENS), "--out", str(out)]
    run = CliRunner().invoke(app, command + options)
    assert run.exit_code == 0, run.output
    (file,) = out.glob("batches-tiny-chat-*.json")
    result = load_result(file)
    assert isinstance(result, BatchesResult)
    assert result.lines == ("resident", "on_demand")
    (four,) = result.batches
    decode_s = four.of("on_demand").rounds[0].answer.decode_s
    assert four.speeds("on_demand")[0] == pytest.approx(4 * (NUM_TOKENS - 1) / decode_s)
    assert four.of("on_demand").rounds[0].answer.tokens == four.of("resident").rounds[0].answer.tokens
    pytest.importorskip("matplotlib")
    draw_result(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
