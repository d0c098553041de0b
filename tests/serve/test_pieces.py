from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from deployments.pieces import coalesce, join_each
from pgmoe.request import RequestOutput, Usage


def piece(text: str, last: bool = False) -> RequestOutput:
    usage = Usage(prompt_tokens=1, completion_tokens=3) if last else None
    return RequestOutput(
        request_id="1", text=text, token_ids=(ord(text),), finish_reason="stop" if last else None, usage=usage
    )


PIECES = [piece("a"), piece("b"), piece("c", last=True)]


def test_joined_pieces_are_one_with_the_end_of_the_last() -> None:
    whole = RequestOutput.join(PIECES)
    assert (whole.text, whole.token_ids, whole.finish_reason) == ("abc", (97, 98, 99), "stop")
    assert whole.usage == PIECES[-1].usage


async def test_a_reader_that_keeps_up_gets_each_piece_when_it_comes() -> None:
    gate = asyncio.Event()

    async def source() -> AsyncIterator[RequestOutput]:
        for one in PIECES:
            yield one
            await gate.wait()
            gate.clear()

    got = []
    async for one in coalesce(source()):
        got.append(one)
        gate.set()
    assert got == PIECES


async def test_a_slow_reader_gets_what_has_come_since_as_one_piece() -> None:
    async def source() -> AsyncIterator[RequestOutput]:
        for one in PIECES:
            yield one
            await asyncio.sleep(0)

    got = []
    async for one in coalesce(source()):
        got.append(one)
        await asyncio.sleep(0.05)
    assert len(got) < len(PIECES)
    assert RequestOutput.join(got) == RequestOutput.join(PIECES)


def test_pieces_of_several_answers_are_joined_each_with_its_own() -> None:
    mixed = [replace(piece(text), index=index) for index, text in ((1, "a"), (0, "b"), (1, "c"), (0, "d"))]
    assert [(one.index, one.text) for one in join_each(mixed)] == [(1, "ac"), (0, "bd")]


async def test_a_slow_reader_of_several_answers_gets_one_piece_of_each() -> None:
    async def source() -> AsyncIterator[RequestOutput]:
        for text in "abc":
            for index in range(2):
                yield replace(piece(text), index=index)

    got = [(one.index, one.text) async for one in coalesce(source())]
    assert got == [(0, "abc"), (1, "abc")]


async def test_an_error_comes_after_what_was_ready_before_it() -> None:
    async def source() -> AsyncIterator[RequestOutput]:
        yield PIECES[0]
        yield PIECES[1]
        raise ValueError("broken")

    pieces = coalesce(source())
    assert (await anext(pieces)).text == "ab"
    with pytest.raises(ValueError, match="broken"):
        await anext(pieces)


async def test_closing_stops_the_source() -> None:
    ended = asyncio.Event()

    async def source() -> AsyncIterator[RequestOutput]:
        try:
            yield PIECES[0]
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with aclosing(coalesce(source())) as pieces:
        await anext(pieces)
    assert ended.is_set()
