"""A typed client of `pgmoe.v1.PgmoeService`.

::

    with PgmoeClient("127.0.0.1:9000") as client:
        for piece in client.stream(messages=[{"role": "user", "content": "Hello"}]):
            print(piece.text, end="")
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc

from deployments import grpc_messages
from deployments.errors import from_grpc
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.protos.pgmoe.v1.pgmoe_pb2_grpc import PgmoeServiceStub
from pgmoe.errors import InvalidRequest
from pgmoe.request import ModelInfo, RequestOutput, SamplingParams

DEFAULT_ADDRESS = "127.0.0.1:9000"


class PgmoeClient:
    """One channel to a server; safe to share between threads. Errors come as those of pgmoe.errors."""

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
        self._stub = PgmoeServiceStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        params: SamplingParams | None = None,
        model: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> RequestOutput:
        """The whole answer to a text, token ids or `messages` ({"role", "content"} each).

        Without `params` the model's own defaults hold. `timeout_s` is a deadline: the call raises
        DeadlineExceeded and the server stops. `priority` is Request's. Raises InvalidRequest where `params`
        ask for several answers.
        """
        if params is not None and params.n != 1:
            raise InvalidRequest(f"n {params.n}: generate returns one answer; call generate_all", "n")
        (only,) = self.generate_all(
            prompt, messages=messages, params=params, model=model, timeout_s=timeout_s, priority=priority
        )
        return only

    def generate_all(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        params: SamplingParams | None = None,
        model: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """All `n` whole answers, by index; arguments as for `generate`."""
        request = _request(prompt, messages, params, model, timeout_s, priority)
        with _our_errors():
            message = self._stub.Generate(request, timeout=timeout_s)
        return [grpc_messages.output(each) for each in (message, *message.others)]

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        params: SamplingParams | None = None,
        model: str = "",
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> Generator[RequestOutput, None, None]:
        """All `n` answers as they grow, each piece with its answer's index; arguments as for `generate`.

        Closing the generator stops the server.
        """
        call = self._stub.GenerateStream(
            _request(prompt, messages, params, model, timeout_s, priority), timeout=timeout_s
        )
        try:
            with _our_errors():
                for message in call:
                    yield grpc_messages.output(message)
        finally:
            call.cancel()

    def model_info(self, model: str = "", timeout_s: float | None = None) -> ModelInfo:
        """What the server serves."""
        with _our_errors():
            return grpc_messages.info(
                self._stub.GetModelInfo(pb.GetModelInfoRequest(model=model), timeout=timeout_s)
            )

    def close(self) -> None:
        """Close the channel; calls still open end, and the server stops their generations."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _request(
    prompt: str | Sequence[int] | None,
    messages: Sequence[Mapping[str, str]] | None,
    params: SamplingParams | None,
    model: str,
    timeout_s: float | None,
    priority: int,
) -> pb.GenerateRequest:
    if (prompt is None) == (messages is None):
        raise InvalidRequest("give exactly one of prompt and messages", "prompt")
    with _what_protobuf_refuses():
        request = pb.GenerateRequest(model=model, timeout_s=timeout_s, priority=priority)
        if params is not None:
            request.sampling.CopyFrom(grpc_messages.sampling_message(params))
        if isinstance(prompt, str):
            request.prompt = prompt
        elif prompt is not None:
            request.prompt_token_ids.ids.extend(prompt)
            # An empty list is a prompt, too: the server says what is wrong.
            request.prompt_token_ids.SetInParent()
        else:
            request.chat.messages.extend(_turn(index, turn) for index, turn in enumerate(messages or ()))
            request.chat.SetInParent()
        return request


def _turn(index: int, turn: Mapping[str, str]) -> pb.ChatMessage:
    unlike = sorted(set(turn) ^ {"role", "content"})
    if unlike:
        found = ", ".join(f"{'unknown' if key in turn else 'missing'} {key!r}" for key in unlike)
        raise InvalidRequest(f"messages[{index}]: {found}; give role and content", "messages")
    return pb.ChatMessage(**turn)


@contextmanager
def _what_protobuf_refuses() -> Iterator[None]:
    try:
        yield
    except InvalidRequest:
        raise
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{error.object!r} is no text that can be sent: {error.reason} at position {error.start}"
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(str(error)) from error


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_grpc(error.code(), error.details() or "") from error
