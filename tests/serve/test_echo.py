"""`echo` of `/v1/completions`: the prompt before the answer, with the log-probabilities of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from deployments.echo import Echo
from pgmoe.engine.llm import LLM
from pgmoe.request import Completion, SamplingParams
from tests.serve.running_server import MODEL
from tests.support.chat_tokenizer import BOS, train_chat_tokenizer

PROMPT = "Words such as naïve, 日本語 and 🙂 have letters"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def expected(offline: LLM) -> Completion:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=1, prompt_logprobs=1)
    (answer,) = offline.generate(PROMPT, params)
    return answer


def numbers(answer: Completion) -> list[float]:
    return [entry.logprob for entry in (*answer.prompt_logprobs[1:], *answer.logprobs) if entry is not None]


def test_the_prompt_comes_with_the_engines_log_probabilities(openai: OpenAI, expected: Completion) -> None:
    choice = openai.completions.create(prompt=PROMPT, echo=True, logprobs=1, **GREEDY).choices[0]
    assert choice.text == PROMPT + expected.text
    found = choice.logprobs
    assert found is not None
    tokens, logprobs, tops = found.tokens or [], found.token_logprobs or [], found.top_logprobs or []
    assert tokens[0] == BOS
    assert (logprobs[0], tops[0]) == (None, None)
    assert logprobs[1:] == pytest.approx(numbers(expected), abs=1e-4)
    assert len(tokens) == len(tops) == len(found.text_offset or []) == len(logprobs)
    for token, logprob, top in zip(tokens[1:], logprobs[1:], tops[1:], strict=True):
        assert logprob <= max(top.values())
        assert token in top


def test_offsets_say_where_the_tokens_stand_in_the_text(openai: OpenAI) -> None:
    choice = openai.completions.create(prompt=PROMPT, echo=True, logprobs=0, **GREEDY).choices[0]
    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
    assert offsets[:2] == [0, 0], "the bos token takes no room"
    in_prompt = [(t, o) for t, o in zip(tokens[1:], offsets[1:], strict=True) if o < len(PROMPT)]
    assert len(in_prompt) > 10
    for token, offset in in_prompt:
        assert choice.text[offset:].startswith(token) or "\ufffd" in token


@pytest.mark.parametrize("as_ids", ["ids", "list of ids"])
def test_token_ids_are_echoed_as_their_text(
    openai: OpenAI, offline: LLM, expected: Completion, as_ids: str
) -> None:
    assert offline.tokenizer is not None
    ids: Any = offline.tokenizer.encode(PROMPT)
    prompt = [ids] if as_ids == "list of ids" else ids
    by_ids = openai.completions.create(prompt=prompt, echo=True, logprobs=1, **GREEDY).choices[0]
    by_text = openai.completions.create(prompt=PROMPT, echo=True, logprobs=1, **GREEDY).choices[0]
    assert by_ids.text == by_text.text == PROMPT + expected.text
    assert by_ids.logprobs is not None
    assert by_text.logprobs is not None
    assert by_ids.logprobs.tokens == by_text.logprobs.tokens
    assert by_ids.logprobs.text_offset == by_text.logprobs.text_offset


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_tokens_but_an_echo_is_the_prompt_alone(
    openai: OpenAI, expected: Completion, stream: bool
) -> None:
    asked = GREEDY | {"max_tokens": 0, "prompt": PROMPT, "echo": True, "logprobs": 1}
    if stream:
        *pieces, last = openai.completions.create(
            stream=True, stream_options={"include_usage": True}, **asked
        )
        (piece,) = pieces
        choice, usage = piece.choices[0], last.usage
    else:
        answer = openai.completions.create(**asked)
        choice, usage = answer.choices[0], answer.usage
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert choice.logprobs is not None
    assert (choice.logprobs.token_logprobs or [])[1:] == pytest.approx(
        numbers(expected)[: len(expected.prompt_logprobs) - 1], abs=1e-4
    )
    assert usage is not None
    assert (usage.completion_tokens, usage.total_tokens) == (0, len(expected.prompt_logprobs))


def test_each_streamed_answer_repeats_the_prompt_once(openai: OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "echo": True, "logprobs": 1, "n": 2, "seed": 3}
    asked |= {"model": MODEL, "max_tokens": 6}
    whole = openai.completions.create(**asked)
    texts, lines = ["", ""], [[], []]  # type: ignore[var-annotated]
    for chunk in openai.completions.create(stream=True, **asked):
        (choice,) = chunk.choices
        assert choice.logprobs is not None
        texts[choice.index] += choice.text
        lines[choice.index] += zip(
            choice.logprobs.tokens or [], choice.logprobs.text_offset or [], strict=True
        )
    for choice in whole.choices:
        assert choice.text.startswith(PROMPT)
        assert choice.logprobs is not None
        tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
        assert texts[choice.index] == choice.text
        assert lines[choice.index] == list(zip(tokens, offsets, strict=True))


def test_an_echo_without_log_probabilities_is_text_alone(openai: OpenAI, expected: Completion) -> None:
    choice = openai.completions.create(prompt=PROMPT, echo=True, **GREEDY).choices[0]
    assert (choice.text, choice.logprobs) == (PROMPT + expected.text, None)


def test_an_unfinished_character_of_the_prompt_counts_to_the_answer() -> None:
    tokenizer = train_chat_tokenizer()
    ids = tokenizer.encode("far 🙂")
    assert Echo(tokenizer, ids).text == "far 🙂"
    cut = Echo(tokenizer, ids[:-1])
    assert cut.text == "far "
    assert max(cut.offsets) <= len(cut.text)


def test_token_ids_of_a_model_without_tokenizer_have_no_text() -> None:
    echo = Echo(None, [3, 4, 5])
    assert (echo.text, echo.offsets, echo.tokens([None])) == ("", [0, 0, 0], [""])
