"""Pieces of an answer: joining what is ready, without waiting for more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from pgmoe.request import RequestOutput


async def coalesce(source: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """Read `source` as fast as it goes and yield all that has come since the last yield, joined.

    A reader that keeps up gets every piece by itself; one that is slower gets fewer and longer ones. An error
    of the source is raised after what came before it. Closing the generator cancels the reading.
    """
    ready: list[RequestOutput] = []
    news = asyncio.Event()

    async def read() -> None:
        try:
            async for piece in source:
                ready.append(piece)
                news.set()
        finally:
            news.set()

    reading = asyncio.create_task(read())
    try:
        while not reading.done() or ready:
            await news.wait()
            news.clear()
            if ready:
                pieces, ready[:] = ready[:], []
                yield RequestOutput.join(pieces)
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
