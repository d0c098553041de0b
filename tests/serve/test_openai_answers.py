"""The official client asks for several answers, biased tokens, forms and costs on the running server."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import openai
import pytest
from openai import OpenAI

from pgmoe.engine.llm import LLM
from pgmoe.request import SamplingParams
from tests.serve.running_server import DEFAULTS, MODEL

QUESTION: list[Any] = [{"role": "user", "content": "How far is the moon?"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}
THREE: dict[str, Any] = {"model": MODEL, "n": 3, "seed": 7, "max_tokens": 12}
FORM = {
    "type": "object",
    "properties": {"far": {"type": "boolean"}, "unit": {"enum": ["km", "miles"]}},
    "required": ["far", "unit"],
    "additionalProperties": False,
}
USAGE: Any = {"include_usage": True}


def test_several_answers_are_the_engines_own_by_index(openai: OpenAI, offline: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=12, **DEFAULTS)  # type: ignore[arg-type]
    expected = offline.generate("To bake bread", params)
    answer = openai.completions.create(prompt="To bake bread", **THREE)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [completion.text for completion in expected]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(len(each.token_ids) for each in expected)


def test_several_streamed_answers_are_the_whole_ones_in_pieces(openai: OpenAI) -> None:
    whole = openai.completions.create(prompt="Bread", logprobs=1, **THREE)
    chunks = openai.completions.create(prompt="Bread", logprobs=1, stream=True, stream_options=USAGE, **THREE)
    *pieces, last = [chunk.model_dump() for chunk in chunks]
    texts: dict[int, str] = defaultdict(str)
    offsets: dict[int, list[int]] = defaultdict(list)
    ends = {}
    for (choice,) in (piece["choices"] for piece in pieces):
        assert choice["index"] not in ends
        texts[choice["index"]] += choice["text"]
        offsets[choice["index"]] += choice["logprobs"]["text_offset"]
        if choice["finish_reason"] is not None:
            ends[choice["index"]] = choice["finish_reason"]
    for choice in whole.choices:
        assert choice.logprobs is not None
        found = (texts[choice.index], offsets[choice.index], ends[choice.index])
        assert found == (choice.text, choice.logprobs.text_offset, choice.finish_reason)
    order = [piece["choices"][0]["index"] for piece in pieces]
    assert order != sorted(order), "they come together, not one after the other"
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], whole.usage and whole.usage.total_tokens)


def test_each_streamed_chat_answer_begins_with_its_role(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(messages=QUESTION, **THREE)
    texts: dict[int, str] = defaultdict(str)
    for chunk in openai.chat.completions.create(messages=QUESTION, stream=True, **THREE):
        (choice,) = chunk.choices
        assert (choice.delta.role == "assistant") == (choice.index not in texts)
        texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


def test_a_bias_can_force_a_token_and_another_forbid_it(openai: OpenAI, offline: LLM) -> None:
    assert offline.tokenizer is not None
    (token,) = offline.tokenizer.encode("bread", add_special_tokens=False)[:1]
    only = offline.tokenizer.decode([token])
    forced = openai.completions.create(prompt="Bake", logit_bias={str(token): 100}, **GREEDY)
    assert forced.choices[0].text == only * 12
    chat = openai.chat.completions.create(messages=QUESTION, logit_bias={str(token): 100}, **GREEDY)
    assert chat.choices[0].message.content == only * 12
    (greedy,) = offline.generate("Bake", SamplingParams(temperature=0, max_tokens=1))
    forbidden = {str(greedy.token_ids[0]): -100}
    other = openai.completions.create(prompt="Bake", logit_bias=forbidden, **GREEDY | {"max_tokens": 1})
    assert other.choices[0].text != greedy.text


def test_an_answer_follows_a_json_schema(openai: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "distance", "schema": FORM, "strict": True}}
    answer = openai.chat.completions.create(
        messages=QUESTION, response_format=form, **GREEDY | {"max_tokens": 400}
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert isinstance(found["far"], bool)
    assert found["unit"] in ("km", "miles")
    assert answer.choices[0].finish_reason == "stop"


def test_any_json_object_begins_as_one(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        messages=QUESTION, response_format={"type": "json_object"}, **GREEDY
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_the_form_text_is_none_at_all(openai: OpenAI) -> None:
    plain = openai.chat.completions.create(messages=QUESTION, **GREEDY)
    as_text = openai.chat.completions.create(messages=QUESTION, response_format={"type": "text"}, **GREEDY)
    assert as_text.choices[0].message.content == plain.choices[0].message.content


def test_an_answer_matches_a_regular_expression(openai: OpenAI) -> None:
    extra = {"structured_outputs": {"regex": "(yes|no), [0-9]{3} km"}}
    text = openai.completions.create(prompt="Is it far?", extra_body=extra, **GREEDY).choices[0].text
    head, _, tail = text.partition(", ")
    assert head in ("yes", "no")
    assert tail[:3].isdigit()
    assert tail[3:] == " km"


def test_usage_tells_what_was_cached_and_how_long_it_took(openai: OpenAI) -> None:
    prompt = "A lighthouse keeper counts the ships that pass at night, and then she reads instead. " * 4
    for _ in range(3):  # two replicas may be there
        usage = openai.completions.create(prompt=prompt, n=2, **GREEDY).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens
    timing = (usage.model_extra or {})["timing"]
    assert 0 <= timing["queue_s"] < timing["time_to_first_token_s"]
    assert 0 < timing["mean_inter_token_s"] <= timing["max_inter_token_s"]
    assert timing["num_preemptions"] == 0


def test_a_priority_is_taken(openai: OpenAI) -> None:
    answer = openai.completions.create(prompt="Bread", extra_body={"priority": -5}, **GREEDY)
    assert answer.choices[0].finish_reason is not None


def schema(content: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": content}}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n", 0, "between 1 and 16"),
        ("n", 4, "at most 3 answers"),
        ("n", "2", "integer"),
        ("logit_bias", {"bread": 1}, "token ids"),
        ("logit_bias", {"-1": 1}, "token ids"),
        ("logit_bias", {"1" * 30: 1}, "token ids"),
        ("logit_bias", {"1": 101}, "between -100 and 100"),
        ("logit_bias", {"1": 1, "01": 1}, "distinct"),
        ("logit_bias", {"1": "x"}, "number"),
        ("logit_bias", {"1000000": 1}, "1000000"),
        ("response_format", {"type": "xml"}, "'json_schema'"),
        ("response_format", {"type": "json_schema"}, "needed there"),
        ("response_format", {"type": "json_object", "json_schema": {"name": "x", "schema": {}}}, "belongs"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}, "required"),
        ("response_format", schema({"type": "nothing"}), "cannot be followed"),
        ("response_format", schema({"title": "x" * 70_000}), "65536 bytes"),
        ("priority", 1001, "between -1000 and 1000"),
        ("structured_outputs", {"regex": "x", "json": {}}, "json"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_value_out_of_range_is_a_bad_request_that_names_it(
    openai: OpenAI, field: str, value: Any, message: str, stream: bool
) -> None:
    with pytest.raises(bad_request(), match=message) as caught:
        openai.chat.completions.create(
            messages=QUESTION, model=MODEL, stream=stream, extra_body={field: value}
        )
    assert caught.value.param == field


def test_a_broken_expression_and_two_forms_at_once_are_bad_requests(openai: OpenAI) -> None:
    with pytest.raises(bad_request(), match="cannot be followed"):
        openai.completions.create(prompt="x", extra_body={"structured_outputs": {"regex": "("}}, **GREEDY)
    both = {"structured_outputs": {"regex": "x"}, "response_format": {"type": "json_object"}}
    with pytest.raises(bad_request(), match="leave one of them out") as caught:
        openai.completions.create(prompt="x", extra_body=both, **GREEDY)
    assert caught.value.param == "structured_outputs"


def bad_request() -> type[openai.BadRequestError]:
    return openai.BadRequestError
