"""Requests that share the memory for keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.errors import (
    InvalidRequest,
    PromptTooLong,
)
from pgmoe.request import Completion, SamplingParams
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import DECODER, tiny_model
from tests.support.stepping import LONG, PROMPT, SHORT, add, load, run, whole


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


def test_prefixes_that_are_forgotten_are_computed_anew(tiny: TinyCheckpoints) -> None:
    engine = load(tiny("mixtral"))
    prompt = tuple(range(5, 45))
    cached = []
    for name in ("first", "again", "forgotten"):
        if name == "forgotten":
            engine.forget_prefixes()
        add(engine, name, prompt_token_ids=prompt)
        cached.append(whole(run(engine)[name]).usage.cached_tokens)
    assert cached == [0, 32, 0]
    engine.close()
