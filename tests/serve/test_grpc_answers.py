"""The gRPC client asks for several answers, biased tokens, forms and costs on the running server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import grpc
import pytest

from deployments.client import PgmoeClient
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.protos.pgmoe.v1.pgmoe_pb2_grpc import PgmoeServiceStub
from pgmoe.engine.llm import LLM
from pgmoe.errors import InvalidRequest
from pgmoe.request import RequestOutput, ResponseFormat, SamplingParams
from tests.serve.running_server import Server

PROMPT = "To bake bread"
THREE = SamplingParams(n=3, seed=7, max_tokens=40, ignore_eos=True)
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def test_several_answers_are_the_engines_own_by_index(client: PgmoeClient, offline: LLM) -> None:
    expected = offline.generate(PROMPT, THREE)
    answers = client.generate_all(PROMPT, params=THREE)
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert [answer.token_ids for answer in answers] == [completion.token_ids for completion in expected]
    assert [answer.text for answer in answers] == [completion.text for completion in expected]
    assert all(answer.usage and answer.usage.completion_tokens == 40 for answer in answers)


def test_several_streamed_answers_are_the_whole_ones_in_pieces(client: PgmoeClient) -> None:
    whole = client.generate_all(PROMPT, params=THREE)
    pieces = list(client.stream(PROMPT, params=THREE))
    for answer in whole:
        own = [piece for piece in pieces if piece.index == answer.index]
        assert [piece.finished for piece in own] == [False] * (len(own) - 1) + [True]
        joined = RequestOutput.join(own)
        assert (joined.text, joined.token_ids) == (answer.text, answer.token_ids)
    order = [piece.index for piece in pieces]
    assert order != sorted(order), "they come together, not one after the other"


def test_the_call_for_one_answer_refuses_several(client: PgmoeClient) -> None:
    with pytest.raises(InvalidRequest, match="n 3: generate returns one answer; call generate_all"):
        client.generate(PROMPT, params=THREE)
    (only,) = client.generate_all(PROMPT, params=replace(THREE, n=1))
    assert only.token_ids == client.generate(PROMPT, params=replace(THREE, n=1)).token_ids


def test_the_prompts_log_probabilities_are_the_engines_own(client: PgmoeClient, offline: LLM) -> None:
    params = replace(GREEDY, prompt_logprobs=2)
    (expected,) = offline.generate(PROMPT, params)
    assert client.generate(PROMPT, params=params).prompt_logprobs == expected.prompt_logprobs
    first, *others = client.stream(PROMPT, params=params)
    assert first.prompt_logprobs == expected.prompt_logprobs
    assert not any(piece.prompt_logprobs for piece in others)


def test_a_bias_can_force_a_token(client: PgmoeClient) -> None:
    answer = client.generate(PROMPT, params=replace(GREEDY, logit_bias=((77, 100.0),)))
    assert answer.token_ids == (77,) * 6


def test_an_answer_has_the_form_that_was_asked_for(client: PgmoeClient) -> None:
    schema = json.dumps({"enum": [{"far": True}, {"far": False}]})
    form = ResponseFormat(json_schema=schema)
    answer = client.generate(PROMPT, params=replace(GREEDY, max_tokens=200, response_format=form))
    assert json.loads(answer.text) in ({"far": True}, {"far": False})
    by_regex = replace(GREEDY, response_format=ResponseFormat(regex="[0-9]{3}"))
    digits = client.generate(PROMPT, params=by_regex)
    assert digits.text.isdigit()
    assert digits.finish_reason == "stop"


def test_usage_tells_what_was_cached_and_how_long_it_took(client: PgmoeClient) -> None:
    prompt = "Words such as naïve have letters beyond the plain alphabet; so have many others. " * 4
    for _ in range(3):  # two replicas may be there
        usage = client.generate(prompt, params=GREEDY, priority=-1).usage
    assert usage is not None
    assert 0 < usage.cached_tokens < usage.prompt_tokens
    assert usage.time_to_first_token_s is not None
    assert 0 <= usage.queue_s < usage.time_to_first_token_s
    assert usage.mean_inter_token_s is not None
    assert 0 < usage.mean_inter_token_s <= usage.max_inter_token_s < usage.decode_s


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": {"n": 0}}, "n must be between 1 and 16"),
        ({"sampling": {"n": 9}}, "at most 3 answers"),
        ({"sampling": {"logit_bias": [{"token_id": 10**6}]}}, "logit_bias .* 1000000"),
        ({"sampling": {"logit_bias": [{"token_id": 1}, {"token_id": 1}]}}, "logit_bias .* distinct"),
        ({"sampling": {"logit_bias": [{"token_id": 1, "bias": float("inf")}]}}, "logit_bias .* inf"),
        ({"sampling": {"prompt_logprobs": 21}}, "prompt_logprobs .* 21"),
        ({"sampling": {"response_format": {}}}, "exactly one of json_schema, regex"),
        ({"sampling": {"response_format": {"json_object": False}}}, "exactly one of json_schema, regex"),
        ({"sampling": {"response_format": {"regex": "("}}}, "response_format cannot be followed"),
        ({"sampling": {"response_format": {"json_schema": "{"}}}, "not JSON"),
        ({"priority": 2000}, "priority must be .* 1000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_out_of_range_is_an_invalid_argument(
    server: Server, fields: dict[str, Any], message: str
) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError, match=message) as caught:
        PgmoeServiceStub(channel).Generate(pb.GenerateRequest(prompt="x", **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
