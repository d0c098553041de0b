"""The gRPC modules and messages: up to date, and the same fields as our own data."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from deployments import grpc_messages
from deployments.protos.generate import ROOT
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from pgmoe.errors import InvalidRequest
from pgmoe.request import ModelInfo, RequestOutput, ResponseFormat, SamplingParams, TokenLogprob, Usage

FOLDER = Path("deployments/protos/pgmoe/v1")


def test_the_committed_modules_are_what_protoc_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.protos.generate", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    written = {path.name: path.read_text() for path in (tmp_path / FOLDER).iterdir()}
    assert set(written) == {"pgmoe_pb2.py", "pgmoe_pb2.pyi", "pgmoe_pb2_grpc.py"}
    assert written == {name: (ROOT / FOLDER / name).read_text() for name in written}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (pb.SamplingParams, SamplingParams),
        (pb.Usage, Usage),
        (pb.TokenLogprob, TokenLogprob),
        (pb.ResponseFormat, ResponseFormat),
        (pb.GetModelInfoResponse, ModelInfo),
    ],
)
def test_a_message_has_the_fields_of_our_own_type(message: type, kind: type) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) == {field.name for field in fields(kind)}  # type: ignore[attr-defined]


def test_sampling_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        max_tokens=9, temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.5,
        presence_penalty=-1, frequency_penalty=2, stop=("a", "b"), ignore_eos=True, seed=-7, logprobs=0,
        n=3, logit_bias=((9, -100.0), (2, 0.5)), prompt_logprobs=0,
    )  # fmt: skip
    formats = [
        ResponseFormat(json_schema='{"type": "array"}'),
        ResponseFormat(regex="[ab]+"),
        ResponseFormat(regex=""),
        ResponseFormat(json_object=True),
    ]
    for one in (params, SamplingParams(), *(SamplingParams(response_format=form) for form in formats)):
        wire = grpc_messages.sampling_message(one).SerializeToString()
        assert grpc_messages.sampling_params(pb.SamplingParams.FromString(wire), {}) == one


@pytest.mark.parametrize("form", [pb.ResponseFormat(), pb.ResponseFormat(json_object=False)])
def test_a_response_format_that_says_nothing_is_refused(form: pb.ResponseFormat) -> None:
    with pytest.raises(InvalidRequest, match="exactly one of json_schema, regex and json_object"):
        grpc_messages.sampling_params(pb.SamplingParams(response_format=form), {})


ENTRY = TokenLogprob(token_id=7, text="é", logprob=-0.5, top=((7, "é", -0.5), (8, "e", -math.pi)))
COSTLY = Usage(
    prompt_tokens=3, completion_tokens=1, expert_misses=2, expert_bytes=2**40, cached_tokens=2, queue_s=0.25,
    time_to_first_token_s=0.0, decode_s=0.5, max_inter_token_s=0.125, num_preemptions=1,
)  # fmt: skip
IMPOSSIBLE = TokenLogprob(token_id=8, text="e", logprob=-math.inf)


@pytest.mark.parametrize(
    "piece",
    [
        RequestOutput(
            request_id="1", text="é", token_ids=(7,), logprobs=(ENTRY,), finish_reason="length", usage=COSTLY
        ),
        RequestOutput(request_id="1", text="a", index=2),
        RequestOutput(
            request_id="1", finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=0)
        ),
        RequestOutput(request_id="1", prompt_logprobs=(None, ENTRY, IMPOSSIBLE)),
        RequestOutput(request_id="1", prompt_logprobs=(None,)),
    ],
    ids=["last", "other", "none", "prompt", "short prompt"],
)
def test_an_answer_survives_the_wire(piece: RequestOutput) -> None:
    wire = grpc_messages.response(piece, "m").SerializeToString()
    assert grpc_messages.output(pb.GenerateResponse.FromString(wire)) == piece


def test_whole_answers_are_one_message_whose_first_is_read_by_older_clients() -> None:
    answers = [RequestOutput(request_id="1", text=text, index=i) for i, text in enumerate("abc")]
    message = grpc_messages.whole_response(answers, "m")
    assert grpc_messages.output(message) == answers[0]
    assert [grpc_messages.output(other) for other in message.others] == answers[1:]
