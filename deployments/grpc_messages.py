"""Our plain data as `pgmoe.v1` messages and back. Fields have the same names on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.sampling_defaults import SamplingDefaults
from pgmoe.request import (
    FinishReason,
    ModelInfo,
    RequestOutput,
    ResponseFormat,
    SamplingParams,
    TokenLogprob,
    Usage,
)

_TO_REASON: dict[FinishReason | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}
_FROM_REASON = {value: key for key, value in _TO_REASON.items()}


def sampling_params(message: pb.SamplingParams, defaults: SamplingDefaults) -> SamplingParams:
    """What the caller set over the model's own defaults. Raises InvalidRequest for a value out of range."""
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    given["stop"] = tuple(message.stop)
    given["logit_bias"] = tuple((entry.token_id, entry.bias) for entry in message.logit_bias)
    if message.HasField("response_format"):
        form = {field.name: value for field, value in message.response_format.ListFields()}
        given["response_format"] = ResponseFormat(**form)
    return SamplingParams(**(defaults | given))


def sampling_message(params: SamplingParams) -> pb.SamplingParams:
    """The message that `sampling_params` reads back as `params`."""
    given = {field.name: getattr(params, field.name) for field in fields(params)}
    given["logit_bias"] = [pb.TokenBias(token_id=token, bias=bias) for token, bias in params.logit_bias]
    if params.response_format is not None:
        form = {
            name: value
            for name, value in asdict(params.response_format).items()
            if value not in (None, False)
        }
        given["response_format"] = pb.ResponseFormat(**form)
    return pb.SamplingParams(**given)


def response(piece: RequestOutput, model: str) -> pb.GenerateResponse:
    """One piece, or a whole answer, on its way out."""
    prompt_logprobs = [_logprob_message(entry) for entry in piece.prompt_logprobs if entry is not None]
    return pb.GenerateResponse(
        request_id=piece.request_id,
        model=model,
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=[_logprob_message(entry) for entry in piece.logprobs],
        finish_reason=_TO_REASON[piece.finish_reason],
        usage=None if piece.usage is None else pb.Usage(**asdict(piece.usage)),
        index=piece.index,
        prompt_logprobs=pb.PromptLogprobs(entries=prompt_logprobs) if piece.prompt_logprobs else None,
    )


def whole_response(answers: Sequence[RequestOutput], model: str) -> pb.GenerateResponse:
    """All answers of one request, by index, as one message."""
    first, *others = (response(answer, model) for answer in answers)
    first.others.extend(others)
    return first


def output(message: pb.GenerateResponse) -> RequestOutput:
    """The piece that `response` made the message of; not the `others`."""
    prompt_logprobs = [_logprob(entry) for entry in message.prompt_logprobs.entries]
    return RequestOutput(
        request_id=message.request_id,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprob(entry) for entry in message.logprobs),
        finish_reason=_FROM_REASON[message.finish_reason],
        usage=Usage(**_values(message.usage, Usage)) if message.HasField("usage") else None,
        index=message.index,
        prompt_logprobs=(None, *prompt_logprobs) if message.HasField("prompt_logprobs") else (),
    )


def model_info(info: ModelInfo) -> pb.GetModelInfoResponse:
    """What is served, on its way out."""
    return pb.GetModelInfoResponse(**asdict(info))


def info(message: pb.GetModelInfoResponse) -> ModelInfo:
    """What is served, as the message says."""
    return ModelInfo(**_values(message, ModelInfo))


def _logprob_message(entry: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=token, text=text, logprob=logprob) for token, text, logprob in entry.top]
    return pb.TokenLogprob(token_id=entry.token_id, text=entry.text, logprob=entry.logprob, top=top)


def _logprob(entry: pb.TokenLogprob) -> TokenLogprob:
    top = tuple((other.token_id, other.text, other.logprob) for other in entry.top)
    return TokenLogprob(token_id=entry.token_id, text=entry.text, logprob=entry.logprob, top=top)


def _values(
    message: pb.Usage | pb.GetModelInfoResponse, kind: type[Usage] | type[ModelInfo]
) -> dict[str, Any]:
    """Its fields by name, None for those that may be left out and are."""
    unset = {
        field.name
        for field in message.DESCRIPTOR.fields
        if field.has_presence and not message.HasField(field.name)
    }
    return {f.name: None if f.name in unset else getattr(message, f.name) for f in fields(kind)}
