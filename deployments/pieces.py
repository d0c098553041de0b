"""Pieces of answers: joining what is ready, without waiting for more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from pgmoe.request import RequestOutput


async def coalesce(source: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """Read `source` as fast as it goes and yield all that has come since the last time, joined.

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
                for piece in join_each(pieces):
                    yield piece
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def join_each(pieces: Iterable[RequestOutput]) -> list[RequestOutput]:
    """The pieces of several answers to one request as one of each, in the order in which they begin."""
    by_index: dict[int, list[RequestOutput]] = {}
    for piece in pieces:
        by_index.setdefault(piece.index, []).append(piece)
    return [RequestOutput.join(each) for each in by_index.values()]
