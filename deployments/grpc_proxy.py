"""What Serve's gRPC proxy is given of us: our service, and to hear of every client that leaves.

A call whose client has left is cancelled. In the proxy of Serve 2.60 that stops the request only if it
arrives while the proxy waits for the next piece; while it sends one, nobody hears of it, and the generation
goes on to its end (tried by hand: 8 of 140 streams that were closed after five pieces).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

from ray.serve._private.proxy_request_response import gRPCStreamingType

from deployments.protos.pgmoe.v1 import pgmoe_pb2_grpc


class Call(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def write(self, message: Any) -> Awaitable[None]:
        """Send a message; cancelled when the client has left."""
        ...


def add_pgmoe_service(servicer: Any, server: Any) -> None:
    """Add `pgmoe.v1.PgmoeService` to Serve's server; named in `grpc_servicer_functions`."""
    make: Callable[..., Any] = server.service_handler_factory

    def make_heedful(*, service_method: str, streaming_type: gRPCStreamingType) -> Any:
        handler = make(service_method=service_method, streaming_type=streaming_type)
        return heedful(handler) if streaming_type is gRPCStreamingType.UNARY_STREAM else handler

    server.service_handler_factory = make_heedful
    try:
        pgmoe_pb2_grpc.add_PgmoeServiceServicer_to_server(servicer, server)
    finally:
        server.service_handler_factory = make


def heedful(
    handler: Callable[[Any, Any], AsyncGenerator[Any, None]],
) -> Callable[[Any, Call], Awaitable[None]]:
    """The same streaming handler, but that it hears of a cancellation while a piece is sent, too."""

    async def stream(request: Any, call: Call) -> None:
        pieces = handler(request, call)
        async for piece in pieces:
            try:
                await call.write(piece)
            except asyncio.CancelledError:
                await _cancel(pieces)
                raise

    return stream


async def _cancel(pieces: AsyncGenerator[Any, None]) -> None:
    """Cancel it where it heeds that: waiting for its next piece."""
    outcome: object = None
    while not isinstance(outcome, BaseException):  # it may have a piece at once
        asking = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)  # now it waits
        asking.cancel()
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
