"""The gRPC side of the ingress: `pgmoe.v1.PgmoeService` and `grpc.health.v1.Health`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ray.serve.grpc_util import RayServegRPCContext

from deployments import grpc_messages
from deployments.engine_client import EngineClient
from deployments.errors import fault_of, message_of
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from pgmoe.errors import InvalidRequest, ModelNotFound, PgmoeError
from pgmoe.models.chat_template import ChatMessage
from pgmoe.request import Request

SERVICE = "pgmoe.v1.PgmoeService"


class GrpcService:
    """The methods; each sets its status on the context and raises, which is Serve's way to end a call."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def generate(
        self, message: pb.GenerateRequest, context: RayServegRPCContext
    ) -> pb.GenerateResponse:
        """The whole answer, or all of several."""
        with _status(context):
            request = self._request(message)
            return grpc_messages.whole_response(await self._client.whole(request), self._client.model)

    async def generate_stream(
        self, message: pb.GenerateRequest, context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The answers piece by piece."""
        with _status(context):
            request = self._request(message)
            async with aclosing(self._client.stream(request)) as pieces:
                async for piece in pieces:
                    yield grpc_messages.response(piece, self._client.model)

    async def get_model_info(
        self, message: pb.GetModelInfoRequest, context: RayServegRPCContext
    ) -> pb.GetModelInfoResponse:
        """What is served."""
        with _status(context):
            self._check_model(message.model)
            return grpc_messages.model_info(await self._client.info())

    async def check(self, message: HealthCheckRequest, context: RayServegRPCContext) -> HealthCheckResponse:
        """Whether an engine replica is well; the empty name stands for the whole server."""
        with _status(context):
            if message.service not in ("", SERVICE):
                raise ModelNotFound(f"service {message.service!r} is not served here; ask for {SERVICE!r}")
            try:
                await self._client.check_health()
            except PgmoeError:
                return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
            return HealthCheckResponse(status=HealthCheckResponse.SERVING)

    def _check_model(self, name: str) -> None:
        self._client.check_model(name or self._client.model)

    def _request(self, message: pb.GenerateRequest) -> Request:
        self._check_model(message.model)
        params = grpc_messages.sampling_params(message.sampling, self._client.defaults)
        timeout_s = message.timeout_s if message.HasField("timeout_s") else None
        priority = message.priority
        match message.WhichOneof("input"):
            case "prompt":
                return self._client.text_request(message.prompt, params, timeout_s, priority)
            case "prompt_token_ids":
                ids = tuple(message.prompt_token_ids.ids)
                return self._client.text_request(ids, params, timeout_s, priority)
            case "chat":
                turns = [ChatMessage(turn.role, turn.content) for turn in message.chat.messages]
                return self._client.chat_request(turns, params, timeout_s, priority)
        raise InvalidRequest("give one of prompt, prompt_token_ids and chat", "prompt")


@contextmanager
def _status(context: RayServegRPCContext) -> Iterator[None]:
    """Tell the caller what went wrong; without a status set, Serve would send a traceback."""
    try:
        yield
    except Exception as error:
        context.set_code(fault_of(error).grpc_status)
        context.set_details(message_of(error))
        raise


def refuse_watch(context: RayServegRPCContext) -> None:
    """Health clients poll `Check` when told that `Watch` is not there. Raises NotImplementedError."""
    context.set_code(StatusCode.UNIMPLEMENTED)
    context.set_details("Watch is not offered; call Check")
    raise NotImplementedError("grpc.health.v1.Health/Watch")
