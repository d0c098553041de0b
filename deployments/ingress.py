"""The front door: OpenAI's HTTP routes and our gRPC methods in one Serve deployment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from deployments.engine_client import EngineClient
from deployments.grpc_service import GrpcService, refuse_watch
from deployments.openai_http import build_http
from deployments.protos.pgmoe.v1 import pgmoe_pb2 as pb
from deployments.sampling_defaults import load_defaults
from pgmoe.models.checkpoint import resolve_folder
from pgmoe.models.tokenizer import load_tokenizer


class Ingress:
    """What Serve calls: for HTTP the FastAPI application, for gRPC the method of the RPC's own name."""

    def __init__(self, engine: DeploymentHandle[Any], model: str, name: str, timeout_s: float | None) -> None:
        folder = resolve_folder(model, weights=False)  # those are the engines' matter
        tokenizer, defaults = load_tokenizer(folder), load_defaults(folder)
        self._client = EngineClient(engine, name, tokenizer, defaults, timeout_s)
        self._grpc = GrpcService(self._client)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_http(self._client)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> pb.GenerateResponse:
        """`pgmoe.v1.PgmoeService/Generate`."""
        return await self._grpc.generate(request, grpc_context)

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """`pgmoe.v1.PgmoeService/GenerateStream`."""
        async for response in self._grpc.generate_stream(request, grpc_context):
            yield response

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetModelInfoResponse:
        """`pgmoe.v1.PgmoeService/GetModelInfo`."""
        return await self._grpc.get_model_info(request, grpc_context)

    async def Check(  # noqa: N802
        self, request: HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> HealthCheckResponse:
        """`grpc.health.v1.Health/Check`."""
        return await self._grpc.check(request, grpc_context)

    async def Watch(  # noqa: N802
        self, request: HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        """`grpc.health.v1.Health/Watch`: not offered."""
        refuse_watch(grpc_context)
        yield HealthCheckResponse()
