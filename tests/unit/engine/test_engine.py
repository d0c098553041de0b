from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    ExpertReadError,
    GenerationFailed,
    InvalidRequest,
    NonFiniteLogits,
    PromptTooLong,
    WeightReadError,
)
from pgmoe.request import Completion, Request, SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import DECODER, tiny_model
from tests.support.damage import Original, cut_embedding, cut_experts

PROMPT = (5, 6, 7, 8)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def load(folder: Path, **options: Any) -> Engine:
    return Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", "num_readers": 2, **options}))


@pytest.fixture(scope="module")
def shared(tiny: TinyCheckpoints) -> Iterator[Engine]:
    engine = load(tiny("mixtral"), max_running=2, max_waiting=2)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """Two places and a queue of two; empty before and after each test."""
    yield shared
    assert not shared.has_work
    assert (shared.stats.num_running, shared.stats.num_waiting) == (0, 0)


def add(engine: Engine, request_id: str, params: SamplingParams = SHORT, **options: Any) -> None:
    given = {"prompt_token_ids": PROMPT, **options}
    engine.add(engine.accept(Request(request_id=request_id, params=params, **given)))


def run(engine: Engine, num_steps: int | None = None) -> dict[str, list[StepOutput]]:
    """Take steps (to the end if no number is given); what each request was told."""
    told: dict[str, list[StepOutput]] = {}
    while engine.has_work and num_steps != 0:
        for output in engine.step():
            told.setdefault(output.request_id, []).append(output)
        num_steps = None if num_steps is None else num_steps - 1
    return told


def whole(told: list[StepOutput]) -> Completion:
    return Completion.join(output.piece for output in told if output.piece is not None)


def test_a_step_without_requests_says_nothing(engine: Engine) -> None:
    assert engine.step() == []


def test_requests_take_turns_and_the_queue_moves_up(engine: Engine) -> None:
    for name in "abcd":
        add(engine, name, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 4)
    order = [output.request_id for _ in range(8) for output in engine.step()]
    assert order == list("ababcdcd")


def test_one_request_too_many_is_refused_and_a_place_comes_back(engine: Engine) -> None:
    for name in "abcd":
        add(engine, name)
    rejected = engine.stats.finished["rejected"]
    with pytest.raises(EngineOverloaded, match="try again later"):
        add(engine, "e")
    assert engine.stats.finished["rejected"] == rejected + 1
    engine.abort("c")
    engine.step()
    add(engine, "e")
    told = run(engine)
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


@pytest.mark.parametrize("direct_io", [True, False])
@pytest.mark.parametrize(
    ("cut_files", "kind"), [(cut_experts, ExpertReadError), (cut_embedding, WeightReadError)]
)
def test_a_file_cut_short_ends_the_request_that_needs_it_and_a_whole_one_heals(
    tiny: TinyCheckpoints,
    tmp_path: Path,
    cut_files: Callable[[Path], list[Path]],
    kind: type[Exception],
    direct_io: bool,
) -> None:
    model = tiny("mixtral", torch.float32, "200KB")  # embedding and experts in files of their own
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    before = [Original(path) for path in folder.glob("*.safetensors")]
    engine = load(folder, device_memory="10%", direct_io=direct_io)
    add(engine, "alone")
    expected = whole(run(engine)["alone"]).token_ids

    add(engine, "met")
    add(engine, "spared")
    told = run(engine, num_steps=2)
    cut = [str(path) for path in cut_files(folder)]
    (failed,) = engine.step()
    for file in before:
        file.put_back()
    told["spared"] += run(engine)["spared"]
    assert failed.request_id == "met"
    assert type(failed.error) is kind
    assert any(path in str(failed.error) for path in cut)
    assert whole(told["spared"]).token_ids == expected
    assert engine.stats.finished == {"length": 2, "error": 1}

    add(engine, "met")
    assert whole(run(engine)["met"]).token_ids == expected
    engine.close()


def test_a_model_that_computes_nan_ends_its_request_with_the_reason(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    engine = load(tiny("mixtral"))
    with torch.no_grad():
        engine.loaded.model.get_output_embeddings().weight[7] = float("nan")
    add(engine, "a")
    (output,) = run(engine)["a"]
    assert isinstance(output.error, NonFiniteLogits)
    assert engine.stats.finished == {"error": 1}
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


def test_an_unforeseen_error_is_logged_and_told_in_our_own_words(
    tiny: TinyCheckpoints, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(tiny("mixtral"))
    embedding = engine.loaded.model.get_input_embeddings()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    hook = embedding.register_forward_pre_hook(fail)
    add(engine, "a")
    (output,) = run(engine)["a"]
    assert isinstance(output.error, GenerationFailed)
    assert str(output.error) == "the generation failed (ZeroDivisionError); the log has the details"
    assert isinstance(output.error.__cause__, ZeroDivisionError)
    assert "request a failed" in caplog.text
    assert "ZeroDivisionError: /secret/path" in caplog.text  # with the traceback
    hook.remove()
    caplog.clear()
    add(engine, "b", timeout_s=1e-9)
    assert isinstance(run(engine)["b"][0].error, DeadlineExceeded)
    assert not caplog.records  # the client's own doing
    engine.close()


def kv_memory(num_tokens: int) -> int:
    """What so many tokens of the tiny Mixtral take: 3 layers, key and value of 2 heads, 16 wide, float32."""
    return 3 * 2 * 2 * 16 * 4 * num_tokens


def test_requests_wait_for_kv_memory_and_get_it_in_order(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), max_running=4, kv_memory=kv_memory(256))
    long = SamplingParams(max_tokens=156, temperature=0, ignore_eos=True)
    add(engine, "a", long, prompt_token_ids=(5,) * 44)  # 200 of 256
    add(engine, "b", long, prompt_token_ids=(5,) * 44)
    add(engine, "c", SHORT)  # would fit beside a, but came after b
    engine.step()
    assert (engine.stats.num_running, engine.stats.num_waiting) == (1, 2)
    engine.abort("a")
    told = run(engine, num_steps=1)
    assert (engine.stats.num_running, engine.stats.num_waiting) == (2, 0)
    told = run(engine)
    assert len(whole(told["c"]).token_ids) == 8
    assert engine._scheduler.reserved_bytes == 0
    engine.close()


def test_an_open_answer_ends_with_its_share_of_memory_and_that_of_a_long_prompt_with_the_context(
    tiny: TinyCheckpoints,
) -> None:
    engine = load(tiny("mixtral"), kv_memory=kv_memory(256), max_running=8)
    assert engine.memory.share_tokens == 32
    add(engine, "open", SamplingParams(temperature=0, ignore_eos=True))
    assert whole(run(engine)["open"]).usage.completion_tokens == 32 - len(PROMPT)
    add(engine, "half", SamplingParams(temperature=0, ignore_eos=True), prompt_token_ids=(5,) * 20)
    assert whole(run(engine)["half"]).usage.completion_tokens == 256 - 20
    engine.close()


def test_a_length_that_memory_limits_is_told_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shape = {**DECODER, "max_position_embeddings": 1024}
    config = MixtralConfig(**shape, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)
    tiny_model(config, torch.float32).save_pretrained(folder)
    engine = load(folder, kv_memory=kv_memory(300))
    assert engine.info.max_model_len == 300
    with pytest.raises(PromptTooLong, match=r"of 300 that 225.0 KiB of kv_memory hold; ask for at most"):
        add(engine, "a", SamplingParams(max_tokens=297))
    with pytest.raises(PromptTooLong, match=r"301 tokens, the context 300 that 225.0 KiB of kv_memory hold"):
        add(engine, "a", prompt_token_ids=(5,) * 301)
    add(engine, "a", SamplingParams(max_tokens=296, temperature=0, ignore_eos=True))
    assert len(whole(run(engine)["a"]).token_ids) == 296
    engine.close()


def test_an_ended_request_holds_no_kv_cache_whoever_still_holds_the_request(engine: Engine) -> None:
    sequence = engine.accept(Request(request_id="held", params=SHORT, prompt_token_ids=PROMPT))
    engine.add(sequence)
    engine.step()
    assert sequence.kv_cache is not None
    while engine.has_work:
        engine.step()
    assert sequence.kv_cache is None
