"""Every arm on one tiny checkpoint, in this process: all must say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgmoe.bench.arms.base import Arm
from pgmoe.bench.arms.engine import EngineArm
from pgmoe.bench.arms.no_cache import NoCacheArm
from pgmoe.bench.arms.peers import AccelerateArm, TransformersArm
from pgmoe.bench.benchmarks import parse_arm
from pgmoe.bench.job import Answer, Job, Place
from pgmoe.errors import ConfigError
from tests.conftest import QuantisedCheckpoints
from tests.support.checkpoints import save_tiny

NUM_LAYERS, NUM_EXPERTS, TOP_K = 3, 16, 4
PROMPT = (5, 6, 7, 8, 9, 10)
ARMS = (
    NoCacheArm(),
    EngineArm("small", "9%"),
    EngineArm("emulated", "9%", options=(("emulated_link", "1GB/s"),)),
    TransformersArm("eager"),
    AccelerateArm(cold=True),
    AccelerateArm(cold=False),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bench")
    save_tiny("olmoe", folder / "model", torch.float32)
    return Place(str(folder / "model"), "cpu", torch.get_num_threads(), "default", str(folder))


def _answer(arm: Arm, place: Place, job: Job) -> Answer:
    loaded = arm.open(place)
    try:
        loaded.warm_up(job)
        return loaded.answer(job)
    finally:
        loaded.close()


@pytest.fixture(scope="module")
def resident(place: Place) -> dict[bool, Answer]:
    """By whether the answer is forced."""
    jobs = {False: Job(PROMPT, 9), True: Job(PROMPT, 9, tuple(range(40, 49)))}
    return {forced: _answer(EngineArm("resident"), place, job) for forced, job in jobs.items()}


@pytest.mark.parametrize("forced", [False, True], ids=["greedy", "forced"])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_says_what_the_resident_engine_says(
    arm: Arm, forced: bool, place: Place, resident: dict[bool, Answer]
) -> None:
    job = Job(PROMPT, 9, tuple(range(40, 49)) if forced else None)
    answer = _answer(arm, place, job)
    assert answer.tokens == resident[forced].tokens
    assert answer.first_token_s > 0
    assert answer.decode_s > 0


def test_forced_tokens_are_fed_in_place_of_chosen_ones(resident: dict[bool, Answer]) -> None:
    assert resident[True].tokens[0] == resident[False].tokens[0]
    assert resident[True].tokens != resident[False].tokens


def test_the_resident_engine_reads_nothing_once_warm(resident: dict[bool, Answer]) -> None:
    for answer in resident.values():
        assert answer.traffic is not None
        assert (answer.traffic.hits, answer.traffic.misses) == (8 * NUM_LAYERS * TOP_K, 0)
        assert answer.traffic.num_bytes == 0


def test_without_a_cache_every_expert_is_read_every_time(place: Place) -> None:
    traffic = _answer(NoCacheArm(), place, Job(PROMPT, 9, tuple(range(40, 49)))).traffic
    assert traffic is not None
    assert (traffic.hits, traffic.misses) == (0, 8 * NUM_LAYERS * TOP_K)
    expert_bytes = 3 * 64 * 48 * 4
    assert traffic.num_bytes == traffic.misses * expert_bytes


def test_accelerate_keeps_experts_and_nothing_else_on_disk(place: Place) -> None:
    loaded = AccelerateArm().open(place)
    try:
        on_disk = {n for n, p in loaded._model.named_parameters() if p.device.type == "meta"}
    finally:
        loaded.close()
    assert on_disk
    assert all(".experts." in name for name in on_disk)
    assert not list(Path(place.scratch).glob("accelerate-*"))


def test_arms_by_name() -> None:
    assert parse_arm("25%") == EngineArm("pgmoe, 25%", "25%")
    assert parse_arm("grouped_mm") == TransformersArm("grouped_mm")
    with pytest.raises(ConfigError, match="unknown arm 'gruoped_mm'"):
        parse_arm("gruoped_mm")


@pytest.mark.parametrize("kind", ["fp8 deepseek odd", "mxfp4 gpt_oss"])
def test_quantised_experts_are_expanded_without_a_cache_as_with_one(
    quantised: QuantisedCheckpoints, kind: str
) -> None:
    folder = quantised(kind)
    place = Place(str(folder), "cpu", torch.get_num_threads(), "default", str(folder.parent))
    job = Job(PROMPT, 5, forced=(9, 8, 7, 6, 5))  # by the same attention
    assert _answer(NoCacheArm(), place, job).tokens == _answer(EngineArm("resident"), place, job).tokens
