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
from pgmoe.request import ModelInfo, RequestOutput, SamplingParams, TokenLogprob, Usage

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
        (pb.GetModelInfoResponse, ModelInfo),
    ],
)
def test_a_message_has_the_fields_of_our_own_type(message: type, kind: type) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) == {field.name for field in fields(kind)}  # type: ignore[attr-defined]


def test_sampling_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        max_tokens=9, temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.5,
        presence_penalty=-1, frequency_penalty=2, stop=("a", "b"), ignore_eos=True, seed=-7, logprobs=0,
    )  # fmt: skip
    for one in (params, SamplingParams()):
        wire = grpc_messages.sampling_message(one).SerializeToString()
        assert grpc_messages.sampling_params(pb.SamplingParams.FromString(wire), {}) == one


def test_an_answer_survives_the_wire() -> None:
    entry = TokenLogprob(token_id=7, text="é", logprob=-0.5, top=((7, "é", -0.5), (8, "e", -math.pi)))
    usage = Usage(prompt_tokens=3, completion_tokens=1, expert_misses=2, expert_bytes=2**40)
    last = RequestOutput(
        request_id="1", text="é", token_ids=(7,), logprobs=(entry,), finish_reason="length", usage=usage
    )
    for piece in (last, RequestOutput(request_id="1", text="a")):
        wire = grpc_messages.response(piece, "m").SerializeToString()
        assert grpc_messages.output(pb.GenerateResponse.FromString(wire)) == piece
