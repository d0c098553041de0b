"""A profile from start to table on a tiny checkpoint, one process included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgmoe.bench import disk_rate, profile, routed_stream
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.profiled import ProfiledArm, ProfiledEngine
from pgmoe.bench.disk_rate import read_rate
from pgmoe.bench.job import Job, Place
from pgmoe.bench.page_cache import largest, weight_files
from pgmoe.bench.profile import ProfilePlan, measure_profile
from pgmoe.bench.profile_report import render_profile
from pgmoe.bench.random_model import OlmoeShape, save_random_olmoe
from pgmoe.bench.result_file import load_result
from pgmoe.bench.token_parts import COMPUTE, DENSE, PARTS, REST, STOCK, WAITING, part_timer, timed_parts
from pgmoe.errors import ConfigError
from pgmoe.experts.compute import PooledExperts
from pgmoe.experts.pool import ExpertPool

SHAPE = OlmoeShape(4000, 128, 2, 4, 8, 2, 48)
EXPERT_BYTES = 3 * 128 * 48 * 2
JOB = Job.random_stream(4000, prompt_length=4, num_tokens=12)
ON_DEMAND = (("gating", "on_demand"),)
WANTED = ProfilePlan("tiny", (50.0,), ("on_demand",), (("policy", "lru"),), JOB, "random")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("profile")
    save_random_olmoe(folder / "model", SHAPE, torch.device("cpu"))
    return Place(str(folder / "model"), "cpu", 1, "default", str(folder))


@pytest.fixture(scope="module")
def loaded(place: Place) -> Iterator[ProfiledEngine]:
    engine = ProfiledArm(EngineArm("half", "50%", options=ON_DEMAND)).open(place)
    yield engine
    engine.close()


def test_a_profiled_answer_is_the_plain_one_and_its_parts_add_up(loaded: ProfiledEngine) -> None:
    plain = loaded.warm_up(JOB)
    for _ in range(2):  # in either order
        answer = loaded.answer(JOB)
        assert answer.tokens == plain.tokens
        assert answer.profile is not None
        assert answer.traffic is not None
        parts = answer.profile.parts_s
        assert tuple(parts) == PARTS
        assert sum(parts.values()) == pytest.approx(answer.decode_s, rel=0.1)
        assert all(parts[part] > 0 for part in (DENSE, COMPUTE, WAITING, STOCK, REST))
        assert answer.profile.plain_decode_s > 0
        assert answer.profile.compute_cpu_s > 0
        assert answer.profile.reader_cpu_s > 0
        assert 0 < answer.profile.link_busy_s <= answer.decode_s * 1.1
        # The stall that the engine counts is the link's; booking what came is part of waiting, too.
        assert answer.traffic.stall_s <= parts[WAITING]
        assert 0 < answer.profile.timers_s < 0.1 * answer.decode_s


def test_what_was_timed_is_as_it_was_afterwards() -> None:
    plain = PooledExperts.__call__, ExpertPool.wait
    with timed_parts(part_timer()):
        assert PooledExperts.__call__ is not plain[0]
        assert ExpertPool.wait is not plain[1]
    assert (PooledExperts.__call__, ExpertPool.wait) == plain


def test_a_profile_from_start_to_table(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if read_rate(largest(weight_files(place.model)), 1, 2**20, 2**20) is None:
        pytest.skip("this file system has no O_DIRECT")
    monkeypatch.setattr(disk_rate, "RATE_BYTES", 2**22)
    monkeypatch.setattr(profile, "record_stream", routed_stream._record)  # spares a process
    said: list[str] = []
    result = measure_profile(WANTED, place, 2, lambda what, done, total: said.append(what))
    (half,) = result.profiled
    assert (half.name, half.num_slots) == ("50%, on_demand", 8)
    assert [what for what in said if "round" in what] == [f"round {n}: 50%, on_demand" for n in (1, 2)]
    experts = half.read_bytes.low * 11 / EXPERT_BYTES
    assert experts == pytest.approx(round(experts))
    assert half.read_bytes.low >= half.belady_bytes > 0
    assert len(result.disk_bytes_per_s) == 2
    assert load_result(result.save(tmp_path)) == result
    assert "| dense layers | " in render_profile(result)


def test_all_experts_in_memory_are_measured_with_one_gating(place: Place) -> None:
    wanted = replace(WANTED, shares=(100.0, 25.0), gatings=("on_demand", "speculative"))
    assert [arm.name for _, arm in profile._arms(wanted)] == ["100%", "25%, on_demand", "25%, speculative"]
    with pytest.raises(ConfigError, match="can be named once, got 25%, on_demand, 25%, on_demand"):
        measure_profile(replace(WANTED, shares=(25.0, 25.0)), place, 1, lambda *step: None)
    with pytest.raises(ConfigError, match="tokens must be more than 8"):
        measure_profile(replace(WANTED, job=JOB.first(8)), place, 1, lambda *step: None)
