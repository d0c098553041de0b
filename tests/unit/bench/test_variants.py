"""Variants of our engine from start to table on a tiny checkpoint, processes included."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from pgmoe.bench.job import Measured
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.bench.streams import Answered, StreamsAnswer, StreamsJob
from pgmoe.bench.variants import shared_prompts, topic_prompts
from pgmoe.bench.variants_result import VariantRound, VariantsResult
from pgmoe.cli.bench_options import read_documents
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import save_tiny_chat
from tests.unit.bench.results import MEMORY


def test_variants_are_measured_on_the_same_requests_and_compared(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    folder = tiny("olmoe", torch.float32)
    given = ["--variant", "admission=fcfs", "--variant", "admission=experts,policy=lru", "--rounds", "2"]
    sizes = ["--streams", "4", "--option", "max_running=2", "--requests", "2", "--prompt", "20"]
    rest = ["--tokens", "10", "--threads", "1", "--share", "50", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, ["bench", "variants", str(folder), "topics", *given, *sizes, *rest])
    assert run.exit_code == 0, run.output
    (file,) = tmp_path.glob("variants-*-topics-*.json")
    result = load_result(file)
    assert isinstance(result, VariantsResult)
    fcfs, experts = result.variants
    assert [fcfs.name, experts.name] == ["admission=fcfs", "admission=experts,policy=lru"]
    for variant in result.variants:
        assert len(variant.rounds) == 2
        for one in variant.rounds:
            assert one.streams.num_same == 8, "other experts, the same answers"
            assert 0 < one.latency.p50_s <= one.latency.p95_s
            assert 0 < one.longest_gap_s < one.latency.p95_s
            assert sum(one.streams.steps.missing_bytes) > 0
    shown = render_result(result)
    assert "| admission=experts,policy=lru |" in shown
    assert "max_running=2" in shown
    with pytest.raises(ConfigError, match="no picture"):
        draw_result(result, tmp_path / "picture.png")


def test_later_requests_of_a_lone_stream_are_compared_to_its_first() -> None:
    job = StreamsJob.of([[1], [2], [3], [4]], 1, 3, 0)
    answers = [Answered((1, 2, 3), times) for times in ((2, 3, 5), (1, 2, 9), (4, 5, 6), (1, 2, 3))]
    answer = StreamsAnswer(10.0, tuple(answers))
    found = VariantRound.of(Measured(answer, MEMORY), job, answer)
    assert found.later_over_first == pytest.approx(1 / 2)
    assert found.longest_gap_s == 7
    assert (found.latency.p50_s, found.streams.num_same) == (5.5, 4)
    several = StreamsJob.of([[1], [2], [3], [4]], 2, 3, 0)
    assert VariantRound.of(Measured(answer, MEMORY), several, answer).later_over_first is None
    alone = StreamsAnswer(10.0, tuple(answers[:1]))
    one = StreamsJob.of([[1]], 1, 3, 0)
    assert VariantRound.of(Measured(alone, MEMORY), one, alone).later_over_first is None


def test_prompts_of_a_stream_share_their_beginning_and_nothing_else(tiny: TinyCheckpoints) -> None:
    folder = str(tiny("olmoe"))
    prompts = shared_prompts(folder, 2, 3, 40, 30)
    assert [len(prompt) for prompt in prompts] == [40] * 6
    assert len({tuple(prompt[:30]) for prompt in prompts}) == 2
    assert prompts[0][:30] == prompts[1][:30] == prompts[2][:30]
    assert len({tuple(prompt[30:]) for prompt in prompts}) == 6
    with pytest.raises(ConfigError, match="shared 40"):
        shared_prompts(folder, 1, 1, 40, 40)


def test_streams_take_turns_at_the_topics(tmp_path: Path) -> None:
    save_tiny_chat(tmp_path / "model")
    topics = [["one two three"] * 9, ["four five six"] * 9]
    prompts = topic_prompts(str(tmp_path / "model"), topics, 4, 2, 3)
    assert prompts[0] == prompts[1] == prompts[4] == prompts[5]
    assert prompts[2] == prompts[3] == prompts[6] == prompts[7] != prompts[0]
    with pytest.raises(ConfigError, match="documents"):
        topic_prompts(str(tmp_path / "model"), [["one two three"]], 4, 2, 3)


def test_a_shared_beginning_is_for_drawn_tokens_alone(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a document\n")
    arguments = ["x", "--variant", "policy=lru", "--text", str(tmp_path / "text.txt"), "--shared", "3"]
    run = CliRunner().invoke(app, ["bench", "variants", str(tiny("olmoe")), *arguments])
    assert run.exit_code == 2
    assert "without --text" in run.output


def test_documents_of_one_source_are_a_topic(tmp_path: Path) -> None:
    file = tmp_path / "text.parquet"
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "source": ["sea", "sky", "sea"]}), file)
    assert read_documents(file, "sea") == ["a", "c"]
    assert read_documents(file) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="is empty"):
        read_documents(file, "land")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["policy=lru", "policy=lru"], "variant can be named once"),
        (["policy=first"], "policy 'first' is unknown"),
        (["policy"], "is not NAME=VALUE"),
    ],
)
def test_wrong_variants_are_refused_before_anything_is_measured(
    tiny: TinyCheckpoints, given: list[str], said: str
) -> None:
    arguments = [argument for each in given for argument in ("--variant", each)]
    run = CliRunner().invoke(app, ["bench", "variants", str(tiny("olmoe")), "x", *arguments])
    assert isinstance(run.exception, ConfigError)
    assert said in str(run.exception)
