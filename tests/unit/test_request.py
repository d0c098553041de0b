from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmoe.errors import InvalidRequest
from pgmoe.request import (
    MAX_LOGPROBS,
    MAX_PRIORITY,
    MAX_STOP_STRINGS,
    Completion,
    Request,
    RequestOutput,
    ResponseFormat,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from pgmoe.response_format import MAX_REGEX_BYTES, MAX_SCHEMA_BYTES
from pgmoe.sampling_params import MAX_ANSWERS, MAX_BIASED_TOKENS

AT_THE_LIMIT: list[tuple[str, Any]] = [
    ("max_tokens", 1),
    ("max_tokens", None),
    ("temperature", 0),
    ("temperature", 10.0),
    ("top_p", 5e-324),
    ("top_p", 1),
    ("top_k", 0),
    ("top_k", 10**30),
    ("min_p", 0),
    ("min_p", 1.0),
    ("repetition_penalty", 5e-324),
    ("repetition_penalty", 10),
    ("presence_penalty", -2),
    ("presence_penalty", 2.0),
    ("frequency_penalty", -2.0),
    ("frequency_penalty", 2),
    ("stop", ()),
    ("stop", ("x",) * MAX_STOP_STRINGS),
    ("ignore_eos", True),
    ("seed", -(2**63)),
    ("seed", 2**63 - 1),
    ("seed", None),
    ("logprobs", 0),
    ("logprobs", MAX_LOGPROBS),
    ("logprobs", None),
    ("prompt_logprobs", 0),
    ("prompt_logprobs", MAX_LOGPROBS),
    ("prompt_logprobs", None),
    ("n", 1),
    ("n", MAX_ANSWERS),
    ("logit_bias", ()),
    ("logit_bias", ((0, -100), (10**9, 100.0))),
    ("logit_bias", tuple((i, 0.5) for i in range(MAX_BIASED_TOKENS))),
    ("response_format", ResponseFormat(json_object=True)),
    ("response_format", ResponseFormat(json_schema="é" * (MAX_SCHEMA_BYTES // 2))),
    ("response_format", ResponseFormat(regex="x" * MAX_REGEX_BYTES)),
    ("response_format", None),
]
BEYOND: list[tuple[str, Any, str]] = [
    ("max_tokens", 0, "at least 1"),
    ("max_tokens", -1, "at least 1"),
    ("temperature", -0.01, "between 0 and 10"),
    ("temperature", math.nextafter(10, 11), "between 0 and 10"),
    ("temperature", 10**400, "between 0 and 10"),
    ("top_p", 0, "above 0 and at most 1"),
    ("top_p", math.nextafter(1, 2), "above 0 and at most 1"),
    ("top_k", -1, "0 (off) or more"),
    ("min_p", -5e-324, "between 0 and 1"),
    ("min_p", 1.01, "between 0 and 1"),
    ("repetition_penalty", 0, "above 0 and at most 10"),
    ("repetition_penalty", 10.5, "above 0 and at most 10"),
    ("presence_penalty", -2.1, "between -2 and 2"),
    ("presence_penalty", 2.1, "between -2 and 2"),
    ("frequency_penalty", -2.1, "between -2 and 2"),
    ("frequency_penalty", 2.1, "between -2 and 2"),
    ("stop", ("x",) * (MAX_STOP_STRINGS + 1), f"at most {MAX_STOP_STRINGS}"),
    ("stop", ("x", ""), "non-empty strings"),
    ("stop", ("x", b"y"), "non-empty strings"),
    ("stop", "END", "a tuple"),  # would be three stop strings of one letter
    ("stop", None, "a tuple"),
    ("seed", 2**63, "a 64-bit integer"),
    ("seed", -(2**63) - 1, "a 64-bit integer"),
    ("logprobs", -1, f"between 0 and {MAX_LOGPROBS}"),
    ("logprobs", MAX_LOGPROBS + 1, f"between 0 and {MAX_LOGPROBS}"),
    ("ignore_eos", "no", "true or false"),
    ("ignore_eos", 1, "true or false"),
    ("prompt_logprobs", -1, f"between 0 and {MAX_LOGPROBS}"),
    ("prompt_logprobs", MAX_LOGPROBS + 1, f"between 0 and {MAX_LOGPROBS}"),
    ("n", 0, f"between 1 and {MAX_ANSWERS}"),
    ("n", MAX_ANSWERS + 1, f"between 1 and {MAX_ANSWERS}"),
    ("logit_bias", None, "a tuple"),
    ("logit_bias", {1: 2.0}, "a tuple"),
    ("response_format", "json_object", "a ResponseFormat"),
]
BAD_BIAS: list[tuple[Any, str]] = [
    (((1, 2.0, 3.0),), "pairs of token id and bias, got (1, 2.0, 3.0)"),
    (([1, 2.0],), "pairs of token id and bias, got [1, 2.0]"),
    ((7,), "pairs of token id and bias, got 7"),
    (((-1, 2.0),), "by token ids of 0 or more, got -1"),
    ((("1", 2.0),), "by token ids of 0 or more, got '1'"),
    (((True, 2.0),), "by token ids of 0 or more, got True"),
    (((1, 100.5),), "between -100 and 100 for token 1, got 100.5"),
    (((1, -101),), "between -100 and 100 for token 1, got -101"),
    (((1, math.nan),), "between -100 and 100 for token 1, got nan"),
    (((1, None),), "between -100 and 100 for token 1, got None"),
    (((1, 2.0), (1, 3.0)), "of distinct token ids, got 1"),
    (((1, 2.0),) * (MAX_BIASED_TOKENS + 1), f"at most {MAX_BIASED_TOKENS} entries, got 1025"),
]
BAD_FORMATS: list[tuple[dict[str, Any], str]] = [
    ({}, "give exactly one of json_schema, regex and json_object"),
    ({"json_schema": "{}", "regex": "a"}, "give exactly one of json_schema, regex and json_object"),
    ({"json_schema": "{}", "json_object": True}, "give exactly one of json_schema, regex and json_object"),
    ({"json_schema": " " * (MAX_SCHEMA_BYTES + 1)}, f"at most {MAX_SCHEMA_BYTES} bytes for json_schema, got"),
    ({"regex": "é" * (MAX_REGEX_BYTES // 2) + "x"}, f"at most {MAX_REGEX_BYTES} bytes for regex, got"),
    ({"json_schema": {"type": "object"}}, "a string for json_schema, got {'type': 'object'}"),
    ({"regex": b"a"}, "a string for regex, got b'a'"),
    ({"regex": "\ud800"}, "regex is not valid Unicode"),
    ({"json_object": 1}, "true or false for json_object, got 1"),
]
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
INTEGERS = ("max_tokens", "n", "top_k", "seed", "logprobs", "prompt_logprobs")


def refused(**options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**options)
    return caught.value


@pytest.mark.parametrize(("param", "value"), AT_THE_LIMIT)
def test_a_value_at_its_limit_is_taken_as_it_is(param: str, value: Any) -> None:
    assert getattr(SamplingParams(**{param: value}), param) == value


@pytest.mark.parametrize(("param", "value", "limit"), BEYOND)
def test_a_value_beyond_its_limit_is_refused_with_param_value_and_limit(
    param: str, value: Any, limit: str
) -> None:
    error = refused(**{param: value})
    assert error.param == param
    assert str(error).startswith(f"{param} must be ")
    assert limit in str(error)
    assert str(error).endswith(f"got {value!r}")


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -math.inf, [1], 1j])
@pytest.mark.parametrize("param", NUMBERS)
def test_what_is_no_finite_number_is_refused(param: str, value: Any) -> None:
    assert str(refused(**{param: value})) == f"{param} must be a finite number, got {value!r}"


@pytest.mark.parametrize("value", [True, "1", 1.0, math.nan])
@pytest.mark.parametrize("param", INTEGERS)
def test_what_is_no_integer_is_refused(param: str, value: Any) -> None:
    assert str(refused(**{param: value})) == f"{param} must be an integer, got {value!r}"


@pytest.mark.parametrize(("bias", "why"), BAD_BIAS)
def test_a_bias_names_the_entry_at_fault(bias: Any, why: str) -> None:
    error = refused(logit_bias=bias)
    assert error.param == "logit_bias"
    assert str(error) == f"logit_bias must be {why}"


@pytest.mark.parametrize(("given", "why"), BAD_FORMATS)
def test_a_response_format_is_one_text_of_bounded_size(given: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ResponseFormat(**given)
    assert caught.value.param == "response_format"
    assert why in str(caught.value)
    assert len(str(caught.value)) < 200


def test_an_answer_of_a_given_form_ends_where_the_form_does() -> None:
    error = refused(response_format=ResponseFormat(json_object=True), ignore_eos=True)
    assert error.param == "ignore_eos"


def test_parameters_can_be_keys() -> None:
    one, two = (
        SamplingParams(logit_bias=((1, 2.0),), response_format=ResponseFormat(regex="a")) for _ in range(2)
    )
    assert len({one, two}) == 1


def test_neither_n_nor_top_k_is_none() -> None:
    assert refused(n=None).param == "n"


def test_top_k_is_switched_off_by_0_and_not_by_none() -> None:
    assert refused(top_k=None).param == "top_k"


def test_every_parameter_has_a_test_of_its_range() -> None:
    names = {f.name for f in dataclasses.fields(SamplingParams)}
    assert names == {param for param, _ in AT_THE_LIMIT} == {param for param, *_ in BEYOND}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            f.name: st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
            for f in dataclasses.fields(SamplingParams)
        },
    )
)
def test_any_values_are_taken_or_refused_by_name(options: dict[str, Any]) -> None:
    fault = None
    try:
        SamplingParams(**options)
    except InvalidRequest as error:
        fault = error
    assert fault is None or fault.param in options


@pytest.mark.parametrize(
    "given",
    [{}, {"prompt": None}, {"prompt": "", "prompt_token_ids": ()}, {"prompt": "x", "prompt_token_ids": (1,)}],
)
def test_a_request_needs_exactly_one_prompt(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="exactly one of prompt and prompt_token_ids"):
        Request(request_id="r", **given)


@pytest.mark.parametrize("prompt", [b"bytes", 7, ["two", "prompts"]])
def test_a_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt must be a string") as caught:
        Request(request_id="r", prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, "5", True])
def test_a_timeout_that_is_no_positive_number_is_refused(timeout_s: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s must be a number of seconds above 0") as caught:
        Request(request_id="r", prompt="x", timeout_s=timeout_s)
    assert caught.value.param == "timeout_s"


@pytest.mark.parametrize("priority", [-MAX_PRIORITY - 1, MAX_PRIORITY + 1, 0.5, True, None, "high"])
def test_a_priority_out_of_range_is_refused(priority: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"priority must be an integer between -1000 and 1000") as caught:
        Request(request_id="r", prompt="x", priority=priority)
    assert caught.value.param == "priority"


@pytest.mark.parametrize("priority", [-MAX_PRIORITY, 0, MAX_PRIORITY])
def test_a_priority_in_range_is_taken(priority: int) -> None:
    assert Request(request_id="r", prompt="x", priority=priority).priority == priority


def test_the_mean_time_between_tokens_needs_two_of_them() -> None:
    assert Usage(prompt_tokens=1, completion_tokens=5, decode_s=2.0).mean_inter_token_s == 0.5
    assert Usage(prompt_tokens=1, completion_tokens=1).mean_inter_token_s is None


def test_pieces_joined_are_the_whole_answer_with_the_last_ones_ending() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    one, two = (TokenLogprob(token_id=i, text=str(i), logprob=-1.0) for i in (1, 2))
    pieces = [
        RequestOutput(
            request_id="r", text="a", token_ids=(1,), logprobs=(one,), index=3, prompt_logprobs=(None, two)
        ),
        RequestOutput(
            request_id="r",
            text="b",
            token_ids=(2,),
            logprobs=(two,),
            finish_reason="stop",
            usage=usage,
            index=3,
        ),
    ]
    assert [p.finished for p in pieces] == [False, True]
    assert Completion.join(iter(pieces)) == Completion(
        request_id="r",
        text="ab",
        token_ids=(1, 2),
        logprobs=(one, two),
        finish_reason="stop",
        usage=usage,
        index=3,
        prompt_logprobs=(None, two),
    )
