"""A stream's handler in the proxy, whose client may leave at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.grpc_proxy import heedful


class Call:
    """Takes pieces; from one of them on, sending takes for ever."""

    def __init__(self, stuck_at: int | None = None) -> None:
        self._stuck_at = stuck_at
        self.sent: list[int] = []

    async def write(self, message: int) -> None:
        if message == self._stuck_at:
            await asyncio.Event().wait()
        self.sent.append(message)


class Pieces:
    """As Serve's handler: heeds a cancellation while it waits for a piece, and nowhere else."""

    def __init__(self, waits_s: list[float]) -> None:
        self._waits_s = waits_s
        self.heard = 0

    async def handle(self, request: object, call: Call) -> AsyncGenerator[int, None]:
        for number, wait_s in enumerate(self._waits_s):
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                self.heard += 1
                raise
            yield number


async def leave(pieces: Pieces, call: Call) -> None:
    """The client leaves as soon as nothing goes on any more."""
    handling = asyncio.ensure_future(heedful(pieces.handle)(None, call))
    await asyncio.sleep(0.02)
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling


@pytest.mark.parametrize("next_s", [0.0, 0.001, 60.0])
async def test_who_leaves_while_a_piece_is_sent_is_heard_of(next_s: float) -> None:
    pieces, call = Pieces([0.0, 0.0, next_s, 60.0]), Call(stuck_at=1)
    await leave(pieces, call)
    assert pieces.heard == 1
    assert call.sent == [0]


async def test_who_leaves_while_a_piece_is_awaited_is_heard_of_once() -> None:
    pieces, call = Pieces([0.0, 60.0, 60.0]), Call()
    await leave(pieces, call)
    assert pieces.heard == 1
    assert call.sent == [0]


async def test_who_leaves_while_the_last_piece_is_sent_is_nobodys_business() -> None:
    pieces, call = Pieces([0.0, 0.0]), Call(stuck_at=1)
    await leave(pieces, call)
    assert pieces.heard == 0


async def test_a_whole_stream_is_passed_on_and_nothing_is_cancelled() -> None:
    pieces, call = Pieces([0.0] * 5), Call()
    await heedful(pieces.handle)(None, call)
    assert (call.sent, pieces.heard) == ([0, 1, 2, 3, 4], 0)
