from __future__ import annotations

import re
import time

import pytest
import torch

from pgmoe.engine.engine import Engine
from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    InvalidRequest,
    PromptTooLong,
)
from pgmoe.request import Request, SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.stepping import LONG, PROMPT, SHORT, add, load, run, whole


def test_a_step_without_requests_says_nothing(engine: Engine) -> None:
    assert engine.step() == []


def test_requests_run_side_by_side_and_the_queue_moves_up(engine: Engine) -> None:
    for name in "abcd":
        add(engine, name, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 4)
    steps = [[output.request_id for output in engine.step()] for _ in range(4)]
    assert steps == [["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"]]


def test_one_request_too_many_is_refused_and_a_place_comes_back(engine: Engine) -> None:
    for name in "abcd":
        add(engine, name)
    rejected = engine.stats.finished["rejected"]
    with pytest.raises(EngineOverloaded, match="try again later"):
        add(engine, "e")
    assert engine.stats.finished["rejected"] == rejected + 1
    engine.abort("c")
    told = run(engine, num_steps=1)
    add(engine, "e")
    for name, outputs in run(engine).items():
        told.setdefault(name, []).extend(outputs)
    assert set(told) == set("abde")
    assert whole(told["e"]).token_ids == whole(told["b"]).token_ids


def test_an_id_in_use_is_refused_and_the_request_that_has_it_goes_on(engine: Engine) -> None:
    add(engine, "a")
    with pytest.raises(InvalidRequest, match="'a' is in use") as caught:
        add(engine, "a")
    assert caught.value.param == "request_id"
    assert whole(run(engine)["a"]).finish_reason == "length"
    add(engine, "a")
    run(engine)


def test_nothing_more_is_said_of_an_aborted_request(engine: Engine) -> None:
    add(engine, "a", LONG)
    add(engine, "b")
    run(engine, num_steps=4)
    cancelled = engine.stats.finished["cancelled"]
    engine.abort("a")
    engine.abort("a")
    engine.abort("never seen")
    told = run(engine)
    assert set(told) == {"b"}
    assert engine.stats.finished["cancelled"] == cancelled + 1


def test_a_deadline_ends_a_running_request_and_a_waiting_one(engine: Engine) -> None:
    timeouts = engine.stats.finished["timeout"]
    add(engine, "a", LONG, timeout_s=0.1)
    add(engine, "b", SHORT)
    add(engine, "c", LONG)
    add(engine, "waits", SHORT, timeout_s=1e-3)
    time.sleep(2e-3)
    told = run(engine)
    (waited,) = told["waits"]
    assert isinstance(waited.error, DeadlineExceeded)
    assert isinstance(told["a"][-1].error, DeadlineExceeded)
    assert re.match(r"not finished after \d+\.\d s; allow more time", str(told["a"][-1].error))
    assert len(told["a"]) < 200
    assert whole(told["b"]).finish_reason == whole(told["c"]).finish_reason == "length"
    assert engine.stats.finished["timeout"] == timeouts + 2


def test_a_request_within_its_deadline_is_not_disturbed(engine: Engine) -> None:
    add(engine, "a", timeout_s=60)
    assert whole(run(engine)["a"]).finish_reason == "length"


def test_latencies_are_counted_for_each_request(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"))
    for name in "ab":
        add(engine, name)
    run(engine)
    stats = engine.stats
    assert [len(q) for q in (stats.queue_s, stats.time_to_first_token_s, stats.e2e_s)] == [2, 2, 2]
    assert len(stats.inter_token_s) == 2 * 7
    for queue, first, end in zip(stats.queue_s, stats.time_to_first_token_s, stats.e2e_s, strict=True):
        assert 0 < queue < first < end
    engine.close()


def test_closing_ends_what_is_left_and_refuses_the_rest(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), max_running=1)
    accepted = engine.accept(Request(request_id="late", prompt_token_ids=PROMPT))
    for name in "ab":
        add(engine, name)
    engine.step()
    engine.close()
    engine.close()
    assert (engine.stats.num_running, engine.stats.num_waiting, engine.stats.finished["cancelled"]) == (
        0,
        0,
        2,
    )
    with pytest.raises(EngineClosed):
        engine.add(accepted)
    with pytest.raises(EngineClosed):
        engine.step()


def test_the_end_of_sequence_may_come_with_log_probabilities_asked_for(engine: Engine) -> None:
    add(engine, "a", SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, logprobs=20))
    answer = whole(run(engine)["a"])
    assert [len(t.top) for t in answer.logprobs] == [20, 20, 20]
    assert [t.text for t in answer.logprobs] == ["", "", ""]  # no tokenizer


@pytest.mark.parametrize("family", ["switch_transformers", "nllb_moe"])
def test_an_encoder_decoder_answers_as_transformers_generate_does(tiny: TinyCheckpoints, family: str) -> None:
    engine = load(tiny(family), device_memory="50%")
    prompt = (11, 12, 13, 14, 15, 3)
    add(engine, "a", SamplingParams(max_tokens=10, temperature=0), prompt_token_ids=prompt)
    add(engine, "b", SamplingParams(max_tokens=10, temperature=0), prompt_token_ids=(20, 21, 3))
    told = run(engine)
    answer = whole(told["a"])
    model = engine.loaded.model
    with torch.no_grad():
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, num_beams=1)
    assert answer.token_ids == tuple(expected[0, 1:].tolist())
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.token_ids != whole(told["b"]).token_ids
    engine.close()


def test_an_encoder_decoders_prompt_and_answer_have_a_context_each(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("nllb_moe"), max_model_len=16)
    add(engine, "a", SamplingParams(temperature=0, ignore_eos=True), prompt_token_ids=(9,) * 16)
    assert len(whole(run(engine)["a"]).token_ids) == 15  # and the start token
    with pytest.raises(PromptTooLong):
        add(engine, "b", prompt_token_ids=(9,) * 17)
    engine.close()
