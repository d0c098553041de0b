"""The whole way, processes included, on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.benchmarks import NO_CACHE, RESIDENT, custom
from pgmoe.bench.compare import compare
from pgmoe.bench.job import Job, Place
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.report import render
from pgmoe.bench.result import Result
from pgmoe.bench.result_file import load_result
from pgmoe.bench.run import run_benchmark
from pgmoe.bench.worker import Worker
from pgmoe.errors import ConfigError, PgmoeError
from pgmoe.models.loader import read_plan
from tests.unit.bench.limits import needs_limits

SHAPE = OlmoeShape(300, 64, 2, 4, 8, 2, 48)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bench")
    save_random_olmoe(folder / "model", SHAPE, torch.device("cpu"))
    return Place(str(folder / "model"), "cpu", 1, "default", str(folder))


def test_a_random_checkpoint_has_the_shape_asked_for(place: Place) -> None:
    plan = read_plan(place.model)
    assert len(plan.layers) == 2
    assert {(x.num_experts, x.top_k, x.dtype) for x in plan.layers} == {(8, 2, torch.bfloat16)}
    assert plan.layers[0].layout.weight_bytes == 3 * 64 * 48 * 2


def test_a_random_checkpoint_does_not_fall_on_another(place: Place) -> None:
    with pytest.raises(ConfigError, match="not an empty folder"):
        save_random_olmoe(Path(place.model), SHAPE, torch.device("cpu"))


def test_a_benchmark_from_start_to_table(place: Place, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    benchmark = custom(place.model, [RESIDENT, NO_CACHE], num_tokens=12)
    result = run_benchmark(benchmark, place, 2, lambda *step: said.append(step))
    assert [(s.name, len(s.rounds)) for s in result.series] == [("pgmoe, resident", 2), ("no cache", 2)]
    resident, no_cache = ([m.answer for m in s.rounds] for s in result.series)
    assert {a.tokens for a in resident} == {a.tokens for a in no_cache}
    assert all(a.tokens_per_s > 0 for a in (*resident, *no_cache))
    assert all(m.memory.peak_rss_bytes > 2**27 for s in result.series for m in s.rounds)
    assert said[-1][1:] == (8, 8)
    turns = [what for what, _, _ in said if what.startswith("round")]
    arms = ["pgmoe, resident", "no cache"]
    assert turns == [f"round {n}: {arm}" for n in (1, 2) for arm in arms]
    loaded = load_result(result.save(tmp_path))
    assert isinstance(loaded, Result)
    table = render(loaded)
    assert "**no cache** decodes" in table


def test_an_arm_that_cannot_load_says_why(place: Place) -> None:
    with Worker(EngineArm("tiny", "1KiB"), place) as worker, pytest.raises(PgmoeError) as failure:
        worker.loaded()
    assert "arm 'tiny': device_memory '1KiB' has room for 0 experts" in str(failure.value)


@needs_limits
def test_a_limit_holds_for_all_that_an_arm_loads(place: Place) -> None:
    with Worker(NO_CACHE, place, limit_bytes=64 * 2**20) as worker, pytest.raises(PgmoeError) as failure:
        worker.loaded()
    assert "-9 usually means that memory ran out" in str(failure.value)


def test_a_process_that_dies_is_reported(place: Place) -> None:
    with Worker(NO_CACHE, place) as worker:
        worker.loaded()
        worker._process.kill()
        worker._process.join()
        with pytest.raises(PgmoeError, match="'no cache': its process ended with status -9"):
            worker.measure(Job((1, 2), 3))


def test_an_arm_that_may_fail_leaves_the_others_their_rounds(place: Place) -> None:
    arms, job = [EngineArm("tiny", "1KiB"), NO_CACHE], Job((1, 2), 9)
    said: list[str] = []
    (series,) = compare(arms, place, job, 2, lambda what, *_: said.append(what), may_fail=["tiny"])
    assert (series.name, len(series.rounds)) == ("no cache", 2)
    assert any(what.startswith("tiny failed and is left out: arm 'tiny': device_memory") for what in said)


def test_an_arm_twice_is_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="named once"):
        run_benchmark(custom(place.model, [NO_CACHE, NO_CACHE], 12), place, 1, lambda *step: None)
