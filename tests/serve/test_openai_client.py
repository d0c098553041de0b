"""The official client, unchanged, against the running server."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from pgmoe.engine.llm import LLM
from pgmoe.request import SamplingParams
from tests.serve.running_server import DEFAULTS, ENDLESS, MODEL, Server

QUESTION: list[Any] = [
    {"role": "system", "content": "You answer questions."},
    {"role": "user", "content": "How far is the moon?"},
]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 24}


def rendered(offline: LLM) -> list[int]:
    assert offline.tokenizer is not None
    ids = offline.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert isinstance(ids, list)
    return ids


def test_a_chat_answer_is_that_of_the_model_after_its_chat_template(openai: OpenAI, offline: LLM) -> None:
    (expected,) = offline.generate([rendered(offline)], SamplingParams(temperature=0, max_tokens=24))
    answer = openai.chat.completions.create(messages=QUESTION, **GREEDY)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.model == MODEL


def test_a_streamed_chat_answer_is_the_whole_one_in_pieces(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(messages=QUESTION, **GREEDY)
    options: Any = {"include_usage": True}
    chunks = list(
        openai.chat.completions.create(messages=QUESTION, stream=True, stream_options=options, **GREEDY)
    )
    *pieces, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert (last.usage and last.usage.total_tokens) == (whole.usage and whole.usage.total_tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_asked_for(openai: OpenAI) -> None:
    chunks = list(openai.completions.create(prompt="Bread", stream=True, **GREEDY))
    assert chunks[-1].choices[0].finish_reason is not None
    assert all(chunk.usage is None for chunk in chunks)


def test_a_prompt_is_continued_alike_as_text_and_as_token_ids(openai: OpenAI, offline: LLM) -> None:
    (expected,) = offline.generate(["To bake bread"], SamplingParams(temperature=0, max_tokens=24))
    assert offline.tokenizer is not None
    prompts: list[Any] = ["To bake bread", ["To bake bread"], offline.tokenizer.encode("To bake bread")]
    answers = [openai.completions.create(prompt=prompt, **GREEDY) for prompt in prompts]
    assert [answer.choices[0].text for answer in answers] == [expected.text] * 3
    assert answers[0].usage
    assert answers[0].usage.completion_tokens == len(expected.token_ids)


def test_usage_tells_what_the_answer_cost_in_experts(openai: OpenAI) -> None:
    usage = openai.completions.create(prompt="Bread", **GREEDY).usage
    assert usage is not None
    experts: dict[str, float] = usage.model_extra["experts"]  # type: ignore[index]
    assert experts["hits"] + experts["misses"] >= 3 * 2 * usage.completion_tokens  # layers, top-k
    ahead, rest = divmod(experts["bytes"] - experts["misses"] * 73_728, 73_728)
    assert ahead >= 0  # each miss is read, and perhaps experts that were guessed
    assert rest == 0
    assert (experts["stall_s"] > 0) == (experts["misses"] > 0)


def test_chat_log_probabilities_name_the_likeliest_tokens(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=3, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == (answer.usage and answer.usage.completion_tokens)
    for entry in logprobs.content:
        best = [other.logprob for other in entry.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert entry.logprob == best[0] < 0  # greedy takes the likeliest


def test_text_log_probabilities_in_a_stream_line_up_with_its_tokens(openai: OpenAI) -> None:
    whole = openai.completions.create(prompt="Bread", logprobs=2, **GREEDY).choices[0].logprobs
    chunks = openai.completions.create(prompt="Bread", logprobs=2, stream=True, **GREEDY)
    pieces = [chunk.choices[0].logprobs for chunk in chunks]
    assert whole is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for piece in pieces for x in getattr(piece, name)] == getattr(whole, name), name
    assert len(whole.tokens or []) == 24


def test_a_stop_string_ends_the_answer_before_it(openai: OpenAI) -> None:
    text = openai.completions.create(prompt="Bread", **GREEDY).choices[0].text
    stop = next(word for word in text.split() if word.isascii() and len(word) > 1)
    choice = openai.completions.create(prompt="Bread", stop=stop, **GREEDY).choices[0]
    assert choice.text == text.partition(stop)[0]
    assert choice.finish_reason == "stop"


def test_a_seed_repeats_an_answer(openai: OpenAI) -> None:
    def ask(seed: int) -> str:
        return (
            openai.completions.create(model=MODEL, prompt="Bread", seed=seed, max_tokens=16).choices[0].text
        )

    assert ask(7) == ask(7) != ask(8)


def test_who_says_nothing_gets_the_sampling_that_the_models_makers_recommend(openai: OpenAI) -> None:
    def ask(**given: Any) -> str:
        answer = openai.completions.create(model=MODEL, prompt="Bread", seed=7, max_tokens=24, **given)
        return answer.choices[0].text

    recommended = ask(temperature=DEFAULTS["temperature"], extra_body={"top_k": DEFAULTS["top_k"]})
    assert ask() == recommended != ask(temperature=1)


def test_sampling_parameters_beside_openais_are_honoured(openai: OpenAI) -> None:
    greedy = openai.completions.create(prompt="Bread", **GREEDY).choices[0].text
    hot = GREEDY | {"temperature": 2}
    assert openai.completions.create(prompt="Bread", extra_body={"top_k": 1}, **hot).choices[0].text == greedy
    assert openai.completions.create(prompt="Bread", extra_body={"min_p": 1}, **hot).choices[0].text == greedy
    penalised = openai.completions.create(prompt="Bread", extra_body={"repetition_penalty": 5}, **GREEDY)
    assert penalised.choices[0].text != greedy


def test_a_message_may_come_in_parts_and_a_limit_under_its_new_name(openai: OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "How far "}, {"type": "text", "text": "is the moon?"}]
    messages: Any = [QUESTION[0], {"role": "user", "content": parts}]
    answer = openai.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=24, temperature=0
    )
    whole = openai.chat.completions.create(messages=QUESTION, **GREEDY)
    assert answer.choices[0].message.content == whole.choices[0].message.content


def test_two_streams_at_once_get_the_answers_they_get_alone(server: Server, openai: OpenAI) -> None:
    prompts = ["To bake bread", "A lighthouse keeper"]
    long = GREEDY | {"max_tokens": 400, "extra_body": ENDLESS}
    alone = [openai.completions.create(prompt=prompt, **long).choices[0].text for prompt in prompts]

    async def ask(client: AsyncOpenAI, prompt: str, order: list[str]) -> str:
        text = ""
        async for chunk in await client.completions.create(prompt=prompt, stream=True, **long):
            text += chunk.choices[0].text
            order.append(prompt)
        return text

    async def both() -> tuple[list[str], list[str]]:
        order: list[str] = []
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, prompt, order) for prompt in prompts)), order

    together, order = asyncio.run(both())
    assert together == alone
    turns = sum(a != b for a, b in itertools.pairwise(order))
    assert turns > 1, "they took turns, not one after the other"


def test_the_model_is_listed_and_found_by_name(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == [MODEL]
    found = openai.models.retrieve(MODEL)
    assert found.id == MODEL
    assert found.model_extra
    assert found.model_extra["pgmoe"]["num_experts"] == 8


def test_errors_come_as_the_clients_own_classes(openai: OpenAI) -> None:
    with pytest.raises(openai_errors("NotFoundError")) as missing:
        openai.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai_errors("BadRequestError")) as bad:
        openai.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert bad.value.param == "temperature"


def openai_errors(name: str) -> type[openai.APIStatusError]:
    kind = getattr(openai, name)
    assert issubclass(kind, openai.APIStatusError)
    return kind
