from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pgmoe.engine.llm import LLM
from pgmoe.errors import ConfigError, EngineClosed, EngineOverloaded, PromptTooLong
from pgmoe.request import Completion, SamplingParams

GREEDY = SamplingParams(max_tokens=16, temperature=0)
MOON = "How far is the moon?"
PROMPTS = [MOON, "B", "To bake bread, mix flour", "naïve 日本語 🙂"] + [
    "Every hour " * n for n in range(1, 9)
]


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    """Three places and a queue of two: fewer than PROMPTS. Half of the experts fit."""
    with LLM(tiny_chat, device="cpu", device_memory="50%", max_running=3, max_waiting=2) as llm:
        yield llm
        assert (llm.stats.num_running, llm.stats.num_waiting) == (0, 0)


def what(answer: Completion) -> tuple[Any, ...]:
    """All of an answer that does not depend on what else runs (hits and misses do)."""
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return answer.text, answer.token_ids, answer.logprobs, answer.finish_reason, usage


def said(answer: Completion) -> tuple[Any, ...]:
    """The same without numbers that are rounded."""
    text, token_ids, _, *rest = what(answer)
    return text, token_ids, *rest


def reconfigured(folder: Path, new: Path, **generation: Any) -> Path:
    """A copy of a checkpoint with another generation config."""
    shutil.copytree(folder, new)
    (new / "generation_config.json").write_text(json.dumps(generation))
    return new


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=12, temperature=0, logprobs=3),
        SamplingParams(max_tokens=12, seed=7, top_p=0.9, repetition_penalty=1.2, logprobs=0),
    ],
    ids=["greedy", "sampled"],
)
def test_many_prompts_are_answered_in_order_as_if_each_were_alone(llm: LLM, params: SamplingParams) -> None:
    together = llm.generate(PROMPTS, params)
    alone = [llm.generate(prompt, params)[0] for prompt in PROMPTS]
    assert [said(a) for a in together] == [said(a) for a in alone]
    for a, b in zip(together, alone, strict=True):  # batches are rounded otherwise
        assert [t.logprob for t in a.logprobs] == pytest.approx([t.logprob for t in b.logprobs], abs=1e-4)
    assert len({a.token_ids for a in together}) == len(PROMPTS)


def test_greedy_answers_are_those_of_transformers(llm: LLM, tiny_chat: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    model = AutoModelForCausalLM.from_pretrained(tiny_chat)
    for prompt, answer in zip(PROMPTS, llm.generate(PROMPTS, GREEDY), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[
            0, inputs.input_ids.shape[1] :
        ]
        assert answer.token_ids == tuple(expected.tolist())
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_text_and_its_token_ids_are_the_same_prompt(llm: LLM) -> None:
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(MOON)
    by_text, by_ids, by_tuple = (llm.generate(p, GREEDY) for p in (MOON, ids, tuple(ids)))
    assert len(by_text) == 1
    assert what(by_text[0]) == what(by_ids[0]) == what(by_tuple[0])


def test_text_and_ids_may_be_mixed_and_no_prompts_give_no_answers(llm: LLM) -> None:
    assert [a.usage.prompt_tokens for a in llm.generate([[5, 6, 7], "B", [9]], GREEDY)] == [3, 2, 1]
    assert llm.generate([], GREEDY) == []


def test_special_tokens_are_added_unless_the_prompt_has_them(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (with_bos,) = llm.generate(MOON, GREEDY)
    (templated,) = llm.generate(llm.tokenizer.bos_token + MOON, GREEDY, add_special_tokens=False)
    assert what(templated) == what(with_bos)
    (bare,) = llm.generate(MOON, GREEDY, add_special_tokens=False)
    assert bare.usage.prompt_tokens == with_bos.usage.prompt_tokens - 1


def test_a_seed_repeats_an_answer_and_none_does_not(llm: LLM) -> None:
    one, same, other = (llm.generate(MOON, SamplingParams(max_tokens=16, seed=s))[0] for s in (1, 1, 2))
    free = {llm.generate(MOON, SamplingParams(max_tokens=16))[0].token_ids for _ in range(3)}
    assert what(one) == what(same)
    assert one.token_ids != other.token_ids
    assert len(free) == 3


def test_an_answer_ends_before_a_stop_string(llm: LLM) -> None:
    (free,) = llm.generate(MOON, GREEDY)
    stop = free.text[9:12]
    (stopped,) = llm.generate(MOON, SamplingParams(max_tokens=16, temperature=0, stop=("never", stop)))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert 0 < stopped.usage.completion_tokens == len(stopped.token_ids) < 16


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_with_the_end_of_sequence_token_unless_told_to_go_on(
    llm: LLM, tiny_chat: Path, tmp_path: Path, as_list: bool
) -> None:
    (free,) = llm.generate(MOON, GREEDY)
    eos = free.token_ids[5]
    assert eos not in free.token_ids[:5]
    folder = reconfigured(tiny_chat, tmp_path / "eos", eos_token_id=[2, eos] if as_list else eos)
    with LLM(folder, device="cpu") as other:
        (ended,) = other.generate(MOON, GREEDY)
        (went_on,) = other.generate(MOON, SamplingParams(max_tokens=16, temperature=0, ignore_eos=True))
        (last,) = other.generate(MOON, SamplingParams(max_tokens=6, temperature=0))
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[:6], "stop")
    assert free.text.startswith(ended.text)
    assert llm.tokenizer is not None
    assert ended.text == llm.tokenizer.decode(ended.token_ids[:5])
    assert what(went_on) == what(free)
    assert last.finish_reason == "stop"


def test_an_answer_has_max_tokens_or_goes_to_the_end_of_the_context(tiny_chat: Path) -> None:
    with LLM(tiny_chat, device="cpu", max_model_len=40) as llm:
        (one,) = llm.generate(MOON, SamplingParams(max_tokens=1))
        assert (len(one.token_ids), one.finish_reason) == (1, "length")
        (rest,) = llm.generate(MOON, SamplingParams(ignore_eos=True))
        assert (rest.usage.prompt_tokens + rest.usage.completion_tokens, rest.finish_reason) == (40, "length")
        (whole,) = llm.generate([5] * 39)
        assert len(whole.token_ids) == 1
        with pytest.raises(PromptTooLong, match=r"39 prompt tokens and max_tokens 2 .* at most 1 ") as caught:
            llm.generate([5] * 39, SamplingParams(max_tokens=2))
        assert caught.value.param == "max_tokens"
        with pytest.raises(PromptTooLong, match="the prompt has 40 tokens, the context 40") as caught:
            llm.generate([5] * 40)
        assert caught.value.param == "prompt"


def test_a_context_beyond_the_models_own_is_refused(tiny_chat: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len 513: the model's context is 512"):
        LLM(tiny_chat, device="cpu", max_model_len=513)


def test_an_unknown_option_is_refused_by_name(tiny_chat: Path) -> None:
    with pytest.raises(ConfigError, match="device_memroy"):
        LLM(tiny_chat, device="cpu", device_memroy="50%")


def test_log_probabilities_are_the_models_own(llm: LLM, tiny_chat: Path) -> None:
    params = SamplingParams(max_tokens=5, temperature=0, logprobs=4)
    (answer,) = llm.generate([5, 6, 7], params)
    model = AutoModelForCausalLM.from_pretrained(tiny_chat)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, *answer.token_ids]])).logits[0, 2:-1]
    for step, row in zip(answer.logprobs, logits.log_softmax(-1), strict=True):
        expected = row.topk(4)
        assert step.logprob == pytest.approx(row[step.token_id].item(), abs=1e-4)
        assert [i for i, _, _ in step.top] == expected.indices.tolist()
        assert [p for _, _, p in step.top] == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert step.token_id == step.top[0][0]
        assert llm.tokenizer is not None
        assert [t for _, t, _ in step.top] == [llm.tokenizer.decode(i) for i, _, _ in step.top]
    assert tuple(t.token_id for t in answer.logprobs) == answer.token_ids


def test_usage_and_counters_add_up(llm: LLM) -> None:
    stats, experts = llm.stats, llm.stats.experts
    before = (stats.prompt_tokens, stats.generation_tokens, stats.finished["length"])
    moved = (experts.num_hits, experts.num_misses, experts.num_bytes)
    usages = [a.usage for a in llm.generate(PROMPTS, GREEDY)]
    assert stats.prompt_tokens - before[0] == sum(u.prompt_tokens for u in usages)
    assert (
        stats.generation_tokens - before[1] == sum(u.completion_tokens for u in usages) == 16 * len(PROMPTS)
    )
    assert stats.finished["length"] - before[2] == len(PROMPTS)
    # An expert that several answers use in a step is a hit, or a miss, of each.
    assert 0 < experts.num_hits - moved[0] < sum(u.expert_hits for u in usages)
    assert 0 < experts.num_misses - moved[1] < sum(u.expert_misses for u in usages)
    # A guess that arrives between two steps is in no answer's usage.
    assert experts.num_bytes - moved[2] >= sum(u.expert_bytes for u in usages) - len(usages) > 0
    assert all(u.expert_stall_s > 0 for u in usages)


def test_without_guesses_every_miss_is_one_expert_read_for_its_own_answer(tiny_chat: Path) -> None:
    with LLM(tiny_chat, device="cpu", device_memory="50%", gating="on_demand") as llm:
        experts = llm.stats.experts
        before = experts.num_bytes
        usages = [llm.generate(prompt, GREEDY)[0].usage for prompt in PROMPTS]
        assert experts.num_bytes - before == sum(u.expert_bytes for u in usages) > 0
        assert all(u.expert_bytes == u.expert_misses * llm.info.expert_bytes for u in usages)


def test_what_a_step_moves_is_shared_by_those_who_missed_it(tiny_chat: Path) -> None:
    with LLM(tiny_chat, device="cpu", device_memory="50%", gating="on_demand", max_running=4) as llm:
        before = llm.stats.experts.num_bytes
        usages = [a.usage for a in llm.generate(PROMPTS, GREEDY)]
        moved = llm.stats.experts.num_bytes - before
        assert moved == pytest.approx(sum(u.expert_bytes for u in usages), abs=len(usages))
        assert all(0 < u.expert_bytes < u.expert_misses * llm.info.expert_bytes for u in usages)


def test_a_stream_gives_the_same_answer_in_pieces(llm: LLM) -> None:
    pieces = list(llm.stream(MOON, GREEDY))
    assert [p.finished for p in pieces] == [False] * 15 + [True]
    assert what(Completion.join(pieces)) == what(llm.generate(MOON, GREEDY)[0])


def test_a_stream_closed_early_stops_the_generation(llm: LLM) -> None:
    stream = llm.stream(MOON, SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    assert llm.stats.num_running == 1
    cancelled, generated = llm.stats.finished["cancelled"], llm.stats.generation_tokens
    stream.close()
    assert (llm.stats.num_running, llm.stats.finished["cancelled"]) == (0, cancelled + 1)
    llm.generate("B", GREEDY)
    assert llm.stats.generation_tokens == generated + 16


def test_an_error_in_the_loop_over_a_stream_stops_the_generation(llm: LLM) -> None:
    def fail() -> None:
        for _ in llm.stream(MOON, SamplingParams(max_tokens=400, ignore_eos=True)):
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    gc.collect()
    assert llm.stats.num_running == 0


def test_open_streams_and_generate_go_on_together(llm: LLM) -> None:
    expected = [what(llm.generate(p, GREEDY)[0]) for p in PROMPTS[:4]]
    streams = [llm.stream(p, GREEDY) for p in PROMPTS[:3]]
    pieces = [[next(s)] for s in streams]
    (between,) = llm.generate(PROMPTS[3], GREEDY)  # all three places are taken
    for own, stream in zip(pieces, streams, strict=True):
        own += stream
    assert [what(Completion.join(p)) for p in pieces] == expected[:3]
    assert what(between) == expected[3]


def test_one_stream_too_many_is_refused_and_the_others_go_on(tiny_chat: Path) -> None:
    with LLM(tiny_chat, device="cpu", max_running=2, max_waiting=0) as llm:
        first, second, third = (llm.stream(p, GREEDY) for p in PROMPTS[:3])
        begun = [next(first), next(second)]
        with pytest.raises(EngineOverloaded):
            next(third)
        answers = [Completion.join([begun[0], *first]), Completion.join([begun[1], *second])]
        again = llm.generate(PROMPTS[:3], GREEDY)
    assert [what(a) for a in answers] == [what(a) for a in again[:2]]


def test_an_answer_that_nobody_took_in_time_is_still_there(llm: LLM) -> None:
    streams = [llm.stream("B", GREEDY) for _ in range(4)]  # one more than places: the fourth waits
    begun = [[next(s)] for s in streams]
    answers = [Completion.join([*b, *s]) for b, s in zip(begun, streams, strict=True)]
    assert {what(a) for a in answers} == {what(llm.generate("B", GREEDY)[0])}


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_prompt_in_chunks_gives_the_same_greedy_tokens(llm: LLM, tiny_chat: Path, chunk: int) -> None:
    # In fp32 on this model; sums over chunks of another length are rounded otherwise, so not to the bit.
    with LLM(tiny_chat, device="cpu", device_memory="50%", prefill_chunk=chunk) as chunked:
        answers = chunked.generate(PROMPTS[:6], GREEDY)
    assert [a.token_ids for a in answers] == [a.token_ids for a in llm.generate(PROMPTS[:6], GREEDY)]


def test_after_close_nothing_is_answered_and_open_streams_end(tiny_chat: Path) -> None:
    with LLM(tiny_chat, device="cpu") as llm:
        stream = llm.stream(MOON, GREEDY)
        next(stream)
    with pytest.raises(EngineClosed):
        next(stream)
    with pytest.raises(EngineClosed):
        llm.generate("B", GREEDY)
    llm.close()
    assert (llm.stats.num_running, llm.stats.finished["cancelled"]) == (0, 1)
