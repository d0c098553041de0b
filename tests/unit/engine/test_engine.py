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
    DeviceLost,
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
    engine = load(folder, device_memory="10%", direct_io=direct_io, max_running=1)
    add(engine, "alone")
    expected = whole(run(engine)["alone"]).token_ids

    add(engine, "met")
    add(engine, "spared")
    told = run(engine, num_steps=2)
    cut = [str(path) for path in cut_files(folder)]
    (failed,) = engine.step()
    for file in before:
        file.put_back()
    told["spared"] = run(engine)["spared"]
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


def test_whose_part_of_a_step_fails_ends_and_the_others_go_on(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), prefix_cache=False)
    add(engine, "alone", LONG)
    expected = whole(run(engine)["alone"]).token_ids
    embedding = engine.loaded.model.get_input_embeddings()
    poison = next(token for token in range(5, 256) if token not in (*PROMPT, *expected))

    def fail(_: object, given: tuple[torch.Tensor]) -> None:
        if (given[0] == poison).any():
            raise ZeroDivisionError

    hook = embedding.register_forward_pre_hook(fail)
    for name in "ab":
        add(engine, name, LONG)
    told = run(engine, num_steps=20)
    add(engine, "bad", prompt_token_ids=(5, poison, 6))
    add(engine, "c", LONG)
    for name, outputs in run(engine).items():
        told.setdefault(name, []).extend(outputs)
    hook.remove()
    (failed,) = told["bad"]
    assert isinstance(failed.error, GenerationFailed)
    for name in "abc":
        assert whole(told[name]).token_ids == expected
    assert engine._scheduler.num_used_blocks == 0
    engine.close()


def test_a_step_that_breaks_off_ends_whom_it_was_about_and_the_engine_goes_on(
    tiny: TinyCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny("mixtral"), max_running=2)
    for name in "abc":
        add(engine, name)
    run(engine, num_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, "complete", lambda chunks: 1 / 0)
        outputs = engine.step()
    assert [(o.request_id, type(o.error)) for o in outputs] == [("a", GenerationFailed)]
    told = run(engine)
    assert whole(told["b"]).token_ids == whole(told["c"]).token_ids[2:]
    assert engine.stats.finished == {"error": 1, "length": 2}
    engine.close()


def test_a_lost_device_is_fatal_and_says_so(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"))
    embedding = engine.loaded.model.get_input_embeddings()

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    embedding.register_forward_pre_hook(fail)
    add(engine, "a")
    with pytest.raises(DeviceLost, match=r"illegal memory access .*; restart"):
        engine.step()
    engine.close()


def kv_memory(num_tokens: int) -> int:
    """What so many tokens of the tiny Mixtral take: 3 layers, key and value of 2 heads, 16 wide, float32."""
    return 3 * 2 * 2 * 16 * 4 * num_tokens


def test_requests_wait_for_kv_memory_and_get_it_in_order(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), max_running=4, kv_memory=kv_memory(256), prefix_cache=False)
    add(engine, "a", SHORT, prompt_token_ids=(5,) * 200)  # 13 of 16 blocks
    add(engine, "b", SHORT, prompt_token_ids=(5,) * 64)
    add(engine, "c", SHORT)  # would fit beside a, but came after b
    engine.step()
    assert (engine.stats.num_running, engine.stats.num_waiting) == (1, 2)
    engine.abort("a")
    told = run(engine, num_steps=1)
    assert (engine.stats.num_running, engine.stats.num_waiting) == (2, 0)
    for name, outputs in run(engine).items():
        told.setdefault(name, []).extend(outputs)
    assert len(whole(told["c"]).token_ids) == 8
    assert engine._scheduler.num_used_blocks == 0
    engine.close()


@pytest.mark.parametrize("kv_swap_memory", [0, "1MiB"])
def test_who_gives_way_goes_on_with_the_same_answer(tiny: TinyCheckpoints, kv_swap_memory: int | str) -> None:
    engine = load(tiny("mixtral"), kv_memory=kv_memory(256), kv_swap_memory=kv_swap_memory)
    prompts = {name: (ord(name),) * 20 for name in "abcdef"}
    params = SamplingParams(max_tokens=100, seed=3, ignore_eos=True)
    together: dict[str, list[StepOutput]] = {}
    for name, prompt in prompts.items():
        add(engine, name, params, prompt_token_ids=prompt)
    together = run(engine)
    assert engine._scheduler.num_preemptions > 0
    for name, prompt in prompts.items():
        add(engine, name, params, prompt_token_ids=prompt)
        assert whole(together[name]).token_ids == whole(run(engine)[name]).token_ids
    usages = [whole(outputs).usage for outputs in together.values()]
    assert sum(usage.num_preemptions for usage in usages) == engine._scheduler.num_preemptions
    assert engine._scheduler.num_used_blocks == 0
    engine.close()


def test_several_answers_share_their_prompt_and_differ_by_their_random_numbers(engine: Engine) -> None:
    params = SamplingParams(max_tokens=6, seed=1, n=2, ignore_eos=True)
    add(engine, "a", params, prompt_token_ids=PROMPT * 10)
    outputs = run(engine)["a"]
    pieces = [output.piece for output in outputs if output.piece is not None]
    assert sorted({piece.index for piece in pieces}) == [0, 1]
    first, second = (Completion.join(p for p in pieces if p.index == i) for i in (0, 1))
    assert first.token_ids != second.token_ids
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == 40
    add(engine, "b", SamplingParams(max_tokens=6, seed=1, ignore_eos=True), prompt_token_ids=PROMPT * 10)
    assert whole(run(engine)["b"]).token_ids == first.token_ids


def test_more_answers_than_places_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="at most 2 answers") as caught:
        add(engine, "a", SamplingParams(max_tokens=6, n=3))
    assert caught.value.param == "n"


def test_a_prompt_that_begins_like_an_earlier_one_is_not_computed_again(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"))
    prompt = tuple(range(5, 105))
    add(engine, "a", prompt_token_ids=prompt)
    first = whole(run(engine)["a"])
    add(engine, "b", prompt_token_ids=prompt)
    second = whole(run(engine)["b"])
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 96)
    assert second.token_ids == first.token_ids
    add(engine, "c", prompt_token_ids=(200, *prompt))
    assert whole(run(engine)["c"]).usage.cached_tokens == 0
    engine.close()


def test_log_probabilities_of_a_prompt_are_those_of_one_pass(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), kv_memory=kv_memory(256))
    prompt = tuple(range(5, 155))
    add(engine, "other", LONG)  # runs beside, so that the prompt is read in chunks among its tokens
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=3)
    add(engine, "a", params, prompt_token_ids=prompt)
    found = whole(run(engine)["a"]).prompt_logprobs
    with torch.no_grad():
        logits = engine.loaded.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert (len(found), found[0]) == (len(prompt), None)
    for place, token in enumerate(found[1:], start=1):
        assert token is not None
        assert token.token_id == prompt[place]
        assert token.logprob == pytest.approx(logits[place - 1, prompt[place]].item(), abs=1e-4)
        assert [p for _, _, p in token.top] == pytest.approx(
            logits[place - 1].topk(3).values.tolist(), abs=1e-4
        )
    engine.close()


def test_an_open_answer_goes_on_to_the_end_of_the_context(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"), kv_memory=kv_memory(256), max_running=8)
    for name in "ab":  # together they outgrow the memory
        add(engine, name, SamplingParams(temperature=0, ignore_eos=True))
    told = run(engine)
    for name in "ab":
        assert whole(told[name]).usage.completion_tokens == 256 - len(PROMPT)
    engine.close()


def test_a_length_that_memory_limits_is_told_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shape = {**DECODER, "max_position_embeddings": 1024}
    config = MixtralConfig(**shape, intermediate_size=96, num_local_experts=8, num_experts_per_tok=2)
    tiny_model(config, torch.float32).save_pretrained(folder)
    engine = load(folder, kv_memory=kv_memory(300))
    assert engine.info.max_model_len == 288  # whole blocks
    with pytest.raises(PromptTooLong, match=r"of 288 that 225.0 KiB of kv_memory hold; ask for at most"):
        add(engine, "a", SamplingParams(max_tokens=285))
    with pytest.raises(PromptTooLong, match=r"301 tokens, the context 288 that 225.0 KiB of kv_memory hold"):
        add(engine, "a", prompt_token_ids=(5,) * 301)
    add(engine, "a", SamplingParams(max_tokens=284, temperature=0, ignore_eos=True))
    assert len(whole(run(engine)["a"]).token_ids) == 284
    engine.close()


def test_an_ended_or_aborted_request_holds_no_blocks(engine: Engine) -> None:
    add(engine, "a")
    add(engine, "b", LONG)
    engine.step()
    assert engine._scheduler.num_used_blocks == 2
    engine.abort("b")
    engine.step()
    assert engine._scheduler.num_used_blocks == 1
    run(engine)
    assert engine._scheduler.num_used_blocks == 0
