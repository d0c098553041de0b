"""The curve from start to table on a tiny checkpoint, processes included."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.curve import Curve, measure_curve
from pgmoe.bench.curves import our_lines, parse_options, peer_lines, twin_line
from pgmoe.bench.job import Job, Place
from pgmoe.bench.lines import OurLine
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.routed_stream import RoutedStream, record_stream
from pgmoe.bench.share import memory_need, share_within
from pgmoe.errors import ConfigError
from pgmoe.models.loader import read_plan

SHAPE = OlmoeShape(300, 64, 2, 4, 8, 2, 48)
EXPERT_BYTES = 3 * 64 * 48 * 2
TWIN = "pgmoe, on_demand (twin)"
JOB = Job.random_stream(300, prompt_length=4, num_tokens=12)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bench")
    save_random_olmoe(folder / "model", SHAPE, torch.device("cpu"))
    return Place(str(folder / "model"), "cpu", 1, "default", str(folder))


@pytest.fixture(scope="module")
def stream(place: Place) -> RoutedStream:
    return record_stream(place, JOB)


def test_a_stream_has_a_step_for_the_prompt_and_for_each_token_but_the_last(stream: RoutedStream) -> None:
    assert stream.job == JOB
    assert [len(step.layers[0].ids) for step in stream.trace.steps] == [4, *[1] * 11]
    layers = [layer for step in stream.trace.steps for layer in step.layers]
    assert [layer.layer for layer in layers] == [0, 1] * 12
    assert all(len(set(row)) == 2 and set(row) <= set(range(8)) for layer in layers for row in layer.ids)


def test_what_the_model_chooses_itself_is_forced_on_all_lines(place: Place) -> None:
    recorded = record_stream(place, Job(JOB.prompt, 9))
    loaded = EngineArm("ours").open(place)
    try:
        assert recorded.job.forced == loaded.answer(Job(JOB.prompt, 9)).tokens
    finally:
        loaded.close()


def test_the_best_cache_misses_nothing_with_all_and_what_all_must_with_the_least(
    stream: RoutedStream,
) -> None:
    assert stream.belady_bytes(16) == 0
    fewest = [stream.belady_bytes(slots) for slots in range(2, 17)]
    assert fewest == sorted(fewest, reverse=True)
    assert 0 < fewest[0] <= 2 * 2 * EXPERT_BYTES


def test_a_repeated_stream_has_a_sequence_for_each_answer(stream: RoutedStream) -> None:
    repeated = stream.repeated([3, 12])
    assert [step.sequence for step in repeated.steps] == ["1"] * 3 + ["2"] * 12
    assert repeated.steps[3].layers == repeated.steps[0].layers == stream.trace.steps[0].layers


def test_a_curve_from_start_to_table(place: Place, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    save_random_olmoe(twin, replace(SHAPE, embedding_spread=0.5), torch.device("cpu"))
    lru = (("policy", "lru"),)
    curve = Curve(
        name="tiny",
        lines=(
            OurLine("pgmoe", (*lru, ("gating", "on_demand"))),
            twin_line(twin, Path(place.model), "on_demand", lru),
        ),
        resident=("pgmoe",),
        shares=(50,),
        job=JOB,
        workload="random",
        limited=False,
        link_bytes_per_s=1e9,
    )
    said: list[str] = []
    result = measure_curve(curve, place, 2, lambda what, done, total: said.append(what))
    (point,) = result.points
    assert (point.share, point.num_slots, point.limit_bytes) == (50, 8, None)
    assert point.bandwidth == (1e9, 1e9)
    line, reference = point.of("pgmoe"), result.reference(point, "pgmoe")
    expected = reference.rounds[0].answer.tokens
    assert {m.answer.tokens for m in (*line.rounds, *reference.rounds)} == {expected}
    for measured in reference.rounds:
        assert measured.answer.traffic is not None
        assert measured.answer.traffic.misses == 0
    for measured in line.rounds:
        assert measured.answer.traffic is not None
        assert measured.answer.traffic.misses * EXPERT_BYTES >= point.belady_bytes * 11 > 0
    assert [what for what in said if "round" in what] == [
        f"50%: round {n}: {line}%" for n in (1, 2) for line in ("pgmoe, 100", "pgmoe, 50", f"{TWIN}, 50")
    ]
    # The twin is another model, fed with the same tokens.
    with closing(curve.lines[1].at(50, "alone").open(place)) as loaded:
        assert point.of(TWIN).rounds[0].answer.tokens == loaded.answer(JOB).tokens != expected
        assert {Path(file).parent for file in loaded.files()} == {twin}


def test_an_engine_fits_into_the_memory_that_it_is_said_to_need(place: Place) -> None:
    plan = read_plan(place.model)
    slot_bytes = plan.layers[0].layout.slot_bytes
    assert memory_need(plan, 100) - memory_need(plan, 50) == 8 * slot_bytes
    assert memory_need(plan, 50) > plan.dense_bytes + 8 * slot_bytes


def test_what_a_limit_holds_is_what_is_said_to_need_no_more_and_little_less(place: Place) -> None:
    plan = read_plan(place.model)
    weights = plan.dense_bytes + memory_need(plan, 100) - memory_need(plan, 0)
    least = (memory_need(plan, 1) / weights) * 100
    for limit in (least, 1.001 * least, memory_need(plan, 62.5) / weights * 100 + 1e-9):
        share = share_within(plan, limit)
        allowed = weights * limit / 100
        assert memory_need(plan, share) <= allowed < memory_need(plan, share + 0.1) + 1
    assert share_within(plan, 10 * least) == 100
    with pytest.raises(ConfigError, match=f"limit 50%.*needs {math.ceil(least)}%.*a larger model"):
        share_within(plan, 50)


def test_a_line_for_each_gating_and_options_for_all() -> None:
    options = parse_options(["policy=lru", "num_readers=2"])
    assert options == (("policy", "lru"), ("num_readers", 2))
    lines = our_lines(["on_demand", "oracle"], options, Path("trace.parquet"))
    assert [line.name for line in lines] == ["pgmoe, on_demand", "pgmoe, oracle"]
    assert lines[0].options == (*options, ("gating", "on_demand"))
    assert lines[1].options == (*options, ("gating", "oracle"), ("gating_trace", "trace.parquet"))
    assert [line.name for line in our_lines([], (), Path())] == ["pgmoe"]
    with pytest.raises(ConfigError, match="'policy' is not NAME=VALUE"):
        parse_options(["policy"])


@pytest.mark.parametrize("other", [{"num_experts": 4}, {"expert_width": 32}, {"vocab_size": 200}])
def test_a_twin_has_the_same_vocabulary_and_as_many_experts_of_the_same_size(
    other: dict[str, int], place: Place, tmp_path: Path
) -> None:
    save_random_olmoe(tmp_path / "other", replace(SHAPE, **other), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"other is no twin of model: it has .*; name a model"):
        twin_line(tmp_path / "other", Path(place.model), "speculative", ())


def test_a_twin_does_not_replay_another_models_routing(place: Place) -> None:
    with pytest.raises(ConfigError, match="'oracle' replays the routing of model"):
        twin_line(Path(place.model), Path(place.model), "oracle", ())


def test_peers_take_fewer_tokens_where_not_all_is_resident() -> None:
    llama, accelerate = peer_lines(Path("model.gguf"), 9, 4, accelerate=True)
    assert [arm.most_tokens for arm in (llama.at(100, "a"), llama.at(50, "b"))] == [None, 9]
    assert accelerate.at(50, "c").most_tokens == 3
    assert accelerate.at(50, "c").name == "c"
    assert len(peer_lines(Path("model.gguf"), 9, 4, accelerate=False)) == 1
