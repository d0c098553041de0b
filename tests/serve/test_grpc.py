"""`pgmoe.v1.PgmoeService` and the health service on the running server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deployments.client import PgmoeClient
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.protos.pgmoe.v1.pgmoe_pb2_grpc import PgmoeServiceStub
from pgmoe.engine.llm import LLM
from pgmoe.errors import DeadlineExceeded, EngineClosed, InvalidRequest
from pgmoe.request import RequestOutput, SamplingParams
from tests.serve.running_server import CONTEXT, DEFAULTS, MODEL, Server

GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
PROMPT = "To bake bread"


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> PgmoeServiceStub:
    return PgmoeServiceStub(channel)


def test_a_whole_answer_is_the_models_own(client: PgmoeClient, offline: LLM) -> None:
    (expected,) = offline.generate([PROMPT], GREEDY)
    answer = client.generate(PROMPT, params=GREEDY)
    assert (answer.text, answer.token_ids, answer.finish_reason) == (
        expected.text,
        expected.token_ids,
        expected.finish_reason,
    )
    assert answer.logprobs == expected.logprobs
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.expert_misses > 0


def test_a_stream_is_the_whole_answer_in_pieces(client: PgmoeClient) -> None:
    long = replace(GREEDY, max_tokens=200, ignore_eos=True)  # pieces are joined where we read slowly
    whole = client.generate(PROMPT, params=long)
    *pieces, last = client.stream(PROMPT, params=long)
    joined = RequestOutput.join([*pieces, last])
    assert (joined.text, joined.token_ids, joined.logprobs) == (whole.text, whole.token_ids, whole.logprobs)
    assert len(pieces) > 5
    assert all(piece.usage is None and not piece.finished for piece in pieces)
    assert last.finish_reason == whole.finish_reason
    assert last.usage is not None


def test_token_ids_and_messages_are_prompts_too(client: PgmoeClient, offline: LLM) -> None:
    assert offline.tokenizer is not None
    messages = [{"role": "user", "content": "How far is the moon?"}]
    ids = offline.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert client.generate(messages=messages, params=GREEDY).token_ids == (
        client.generate(ids, params=GREEDY).token_ids
    )


def test_a_field_that_is_not_set_is_what_the_models_makers_recommend(stub: PgmoeServiceStub) -> None:
    def ask(**given: Any) -> str:
        sampling = pb.SamplingParams(seed=7, max_tokens=24, **given)
        text: str = stub.Generate(pb.GenerateRequest(prompt=PROMPT, sampling=sampling)).text
        return text

    assert ask() == ask(**DEFAULTS) != ask(temperature=1)


def test_model_info_says_what_is_served(client: PgmoeClient, offline: LLM) -> None:
    info = client.model_info()
    assert info.name == MODEL
    assert info.num_slots == info.num_moe_layers * info.num_experts // 2
    assert (info.total_bytes, info.max_model_len) == (offline.info.total_bytes, CONTEXT)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.GenerateRequest(), "one of prompt, prompt_token_ids and chat"),
        (pb.GenerateRequest(prompt="x", timeout_s=-1), "timeout_s must be .*above 0"),
        (pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(max_tokens=-3)), "max_tokens .* -3"),
        (pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(temperature=float("nan"))), "temperature"),
        (pb.GenerateRequest(prompt="x", sampling=pb.SamplingParams(stop=[""])), "stop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_out_of_range_is_an_invalid_argument(
    stub: PgmoeServiceStub, request_: pb.GenerateRequest, message: str
) -> None:
    with pytest.raises(grpc.RpcError, match=message) as caught:
        stub.Generate(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caught.value.details()


def test_bytes_that_are_no_message_do_not_stop_the_server(channel: grpc.Channel, client: PgmoeClient) -> None:
    call = channel.unary_unary("/pgmoe.v1.PgmoeService/Generate")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN  # Serve parses messages before we see them
    assert client.model_info().name == MODEL


def test_the_requests_own_time_limit_ends_it_with_a_deadline_status(stub: PgmoeServiceStub) -> None:
    endless = pb.SamplingParams(ignore_eos=True)
    with pytest.raises(grpc.RpcError, match=r"not finished after \d+\.\d s") as caught:
        stub.Generate(pb.GenerateRequest(prompt="x", timeout_s=0.1, sampling=endless))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_clients_deadline_raises_our_own_error(client: PgmoeClient) -> None:
    with pytest.raises(DeadlineExceeded):
        client.generate("x", params=SamplingParams(ignore_eos=True), timeout_s=0.1)


def test_a_server_that_is_not_there_is_told_apart_from_a_bad_request() -> None:
    with PgmoeClient("127.0.0.1:1") as nobody, pytest.raises(EngineClosed):
        nobody.model_info(timeout_s=10)


def test_a_client_wants_one_kind_of_prompt(client: PgmoeClient) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        client.generate("x", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize("service", ["", "pgmoe.v1.PgmoeService"])
def test_the_health_service_says_that_it_serves(channel: grpc.Channel, service: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_health_service_knows_no_other_service_and_no_watching(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as watching:
        list(stub.Watch(health_pb2.HealthCheckRequest()))
    assert watching.value.code() is grpc.StatusCode.UNIMPLEMENTED
