from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pgmoe.engine.engine import Engine
from pgmoe.request import SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.stepping import add, load, run, whole

PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
TOPICS = ((5, 6, 7, 8), (40, 41, 42, 43))


@pytest.fixture(scope="module", params=["experts", "fcfs"])
def engine(request: pytest.FixtureRequest, tiny: TinyCheckpoints) -> Iterator[Engine]:
    options = {"device_memory": "50%", "max_running": 2, "admission": request.param, "prefix_cache": False}
    engine = load(tiny("olmoe", torch.float32), **options)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def answers(tiny: TinyCheckpoints) -> dict[str, tuple[int, ...]]:
    """Of each topic alone, all experts resident."""
    engine = load(tiny("olmoe", torch.float32))
    found = {}
    for number, prompt in enumerate(TOPICS):
        add(engine, str(number), PARAMS, prompt_token_ids=prompt)
        found[str(number)] = tuple(whole(run(engine)[str(number)]).token_ids)
    engine.close()
    return found


def test_requests_of_one_topic_run_together_and_get_the_same_answers(
    engine: Engine, answers: dict[str, tuple[int, ...]]
) -> None:
    for number, prompt in enumerate(TOPICS):  # learn the topics
        add(engine, f"before {number}", PARAMS, prompt_token_ids=prompt)
        run(engine)
    names = [f"{index}-{index % 2}" for index in range(8)]
    for name in names:
        add(engine, name, PARAMS, prompt_token_ids=TOPICS[int(name[-1])])
    told = run(engine)
    for name in names:
        assert tuple(whole(told[name]).token_ids) == answers[name[-1]]
    topics = "".join(name[-1] for name in told)
    assert topics == ("01010101" if engine._assembly.footprints is None else topics[0] * 4 + topics[-1] * 4)


def test_experts_are_not_asked_where_all_are_in_slots(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("olmoe"), admission="experts")
    assert engine._assembly.footprints is None
    engine.close()
