from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from pgmoe.config import EngineConfig
from pgmoe.engine.async_engine import AsyncEngine
from pgmoe.engine.engine import Engine, StepOutput
from pgmoe.engine.sequence import Sequence
from pgmoe.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineOverloaded,
    InvalidRequest,
    PgmoeError,
    PromptTooLong,
)
from pgmoe.request import Completion, Request, RequestOutput, SamplingParams
from tests.support.transfers import PATIENCE_S

MOON = "How far is the moon?"
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=450, temperature=0, ignore_eos=True)


def load(folder: Path, **options: Any) -> Engine:
    return Engine(EngineConfig.parse({"model": str(folder), "device": "cpu", "num_readers": 2, **options}))


@pytest.fixture(scope="module")
def shared(tiny_chat: Path) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(load(tiny_chat, device_memory="50%", max_running=2, max_waiting=2))
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: AsyncEngine) -> Iterator[AsyncEngine]:
    """Two places and a queue of two; empty before and after each test."""
    yield shared
    wait_until(lambda: idle(shared))


def idle(engine: AsyncEngine) -> bool:
    return (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)


def wait_until(true: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def request(request_id: str, params: SamplingParams = SHORT, prompt: str = MOON, **options: Any) -> Request:
    return Request(request_id=request_id, prompt=prompt, params=params, **options)


async def answer(engine: AsyncEngine, what: Request) -> Completion:
    return Completion.join([piece async for piece in engine.generate(what)])


async def begun(engine: AsyncEngine, what: Request) -> AsyncIterator[RequestOutput]:
    """A stream of which one piece was taken."""
    stream = engine.generate(what)
    await anext(stream)
    return stream


async def test_concurrent_streams_give_what_each_gives_alone(engine: AsyncEngine) -> None:
    prompts = [MOON, "B", "To bake bread", "naïve 日本語"]
    alone = [await answer(engine, request(f"alone-{p}", prompt=p)) for p in prompts]
    together = await asyncio.gather(*(answer(engine, request(f"{p}", prompt=p)) for p in prompts))
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.request_id for a in together] == prompts


async def test_pieces_come_while_the_answer_is_still_computed(engine: AsyncEngine) -> None:
    async with aclosing(engine.generate(request("r", LONG))) as stream:
        piece = await anext(stream)
        assert not piece.finished
        assert not idle(engine)


@pytest.mark.parametrize("how", ["close", "cancel", "forget"])
async def test_a_reader_that_leaves_stops_the_generation(engine: AsyncEngine, how: str) -> None:
    cancelled, before = engine.stats.finished["cancelled"], engine.stats.generation_tokens
    if how == "cancel":
        first = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(request("r", LONG)):
                first.set()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "close":
        stream = await begun(engine, request("r", LONG))
        await stream.aclose()
    else:
        async for _ in engine.generate(request("r", LONG)):
            break
    await asyncio.to_thread(wait_until, lambda: idle(engine))
    generated = engine.stats.generation_tokens
    assert engine.stats.finished["cancelled"] == cancelled + 1
    assert 0 < generated - before < 450
    await asyncio.sleep(0.05)
    assert engine.stats.generation_tokens == generated


async def test_a_reader_that_leaves_before_its_turn_is_never_computed(engine: AsyncEngine) -> None:
    running = [await begun(engine, request(f"r{n}", LONG)) for n in range(2)]
    prompt_tokens, cancelled = engine.stats.prompt_tokens, engine.stats.finished["cancelled"]
    task = asyncio.create_task(answer(engine, request("waits")))
    await asyncio.to_thread(wait_until, lambda: engine.stats.num_waiting == 1)
    task.cancel()
    await asyncio.to_thread(wait_until, lambda: engine.stats.finished["cancelled"] == cancelled + 1)
    assert (engine.stats.num_running, engine.stats.prompt_tokens) == (2, prompt_tokens)
    for stream in running:
        await stream.aclose()


async def test_an_overloaded_engine_refuses_while_the_others_go_on_and_has_room_again(
    engine: AsyncEngine,
) -> None:
    running = [await begun(engine, request(f"r{n}", LONG)) for n in range(2)]
    waiting = [asyncio.create_task(answer(engine, request(f"w{n}"))) for n in range(2)]
    await asyncio.to_thread(wait_until, lambda: engine.stats.num_waiting == 2)
    for _ in range(3):
        with pytest.raises(EngineOverloaded, match="2 requests run and 2 wait, the limit is 4"):
            await answer(engine, request("too many"))
    assert [(await anext(s)).finished for s in running] == [False, False]
    for stream in running:
        await stream.aclose()
    answers = [*await asyncio.gather(*waiting), await answer(engine, request("too many"))]
    assert len({a.token_ids for a in answers}) == 1


async def test_an_id_is_in_use_until_its_stream_ends(engine: AsyncEngine) -> None:
    stream = await begun(engine, request("r"))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await answer(engine, request("r"))
    rest = [piece async for piece in stream]
    assert rest[-1].finish_reason == "length"
    assert (await answer(engine, request("r"))).token_ids[1:] == tuple(t for p in rest for t in p.token_ids)


async def test_a_finished_answer_that_nobody_has_read_yet_keeps_its_id(engine: AsyncEngine) -> None:
    stream = await begun(engine, request("r"))
    await asyncio.to_thread(wait_until, lambda: idle(engine))
    with pytest.raises(InvalidRequest, match="'r' is in use"):
        await answer(engine, request("r"))
    assert len([piece async for piece in stream]) == 7


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"prompt": ""}, InvalidRequest),
        ({"prompt": "w " * 900}, PromptTooLong),
        ({"prompt": "\ud800"}, InvalidRequest),
    ],
    ids=["empty", "long", "surrogate"],
)
async def test_a_bad_request_is_refused_and_its_id_is_free(
    engine: AsyncEngine, bad: dict[str, Any], error: type[PgmoeError]
) -> None:
    with pytest.raises(error):
        await answer(engine, request("r", **bad))
    assert len((await answer(engine, request("r"))).token_ids) == 8


async def test_a_deadline_ends_a_stream_and_the_next_request_works(engine: AsyncEngine) -> None:
    with pytest.raises(DeadlineExceeded):
        await answer(engine, request("r", LONG, timeout_s=0.15))
    assert len((await answer(engine, request("r"))).token_ids) == 8


def test_several_threads_with_event_loops_of_their_own_share_an_engine(engine: AsyncEngine) -> None:
    answers: dict[str, Completion] = {}

    async def some(name: str) -> None:
        for n in range(3):
            answers[f"{name}{n}"] = await answer(engine, request(f"{name}{n}"))

    threads = [threading.Thread(target=lambda c=c: asyncio.run(some(c))) for c in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    assert len({a.token_ids for a in answers.values()}) == 1


def test_a_reader_whose_event_loop_is_gone_stops_the_generation(engine: AsyncEngine) -> None:
    cancelled, loop = engine.stats.finished["cancelled"], asyncio.new_event_loop()
    stream = loop.run_until_complete(begun(engine, request("r", LONG)))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    wait_until(lambda: idle(engine))
    assert engine.stats.finished["cancelled"] == cancelled + 1
    del stream


async def test_close_ends_open_streams_and_refuses_new_ones(tiny_chat: Path) -> None:
    engine = AsyncEngine(load(tiny_chat, max_running=1))
    running = await begun(engine, request("runs", LONG))
    waiting = asyncio.create_task(answer(engine, request("waits")))
    await asyncio.to_thread(wait_until, lambda: engine.stats.num_waiting == 1)
    engine.check_health()
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineClosed, match="shut down"):
        [piece async for piece in running]
    with pytest.raises(EngineClosed, match="shut down"):
        await waiting
    with pytest.raises(EngineClosed, match="shut down"):
        await answer(engine, request("late"))
    with pytest.raises(EngineClosed, match="shut down"):
        engine.check_health()
    engine.close()
    assert idle(engine)


async def test_a_request_that_comes_while_the_engine_closes_does_not_wait_forever(tiny_chat: Path) -> None:
    engine = AsyncEngine(load(tiny_chat))
    late = [asyncio.create_task(answer(engine, request(f"{n}", prompt="word " * 80))) for n in range(3)]
    await asyncio.sleep(0)  # each is being tokenised in a thread
    engine.close()
    done = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), timeout=PATIENCE_S)
    assert all(isinstance(outcome, EngineClosed) for outcome in done)
    assert idle(engine)


class FailingEngine(Engine):
    """Breaks in its sixth step, as no request's own fault does."""

    num_steps = 0

    def step(self) -> list[StepOutput]:
        self.num_steps += 1
        if self.num_steps > 5:
            raise MemoryError("nothing left")
        return super().step()


async def test_an_engine_that_fails_tells_everybody_and_is_not_well(
    tiny_chat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = AsyncEngine(FailingEngine(EngineConfig(model=str(tiny_chat), device="cpu")))
    streams = [answer(engine, request(f"r{n}", LONG)) for n in range(2)]
    outcomes = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), timeout=PATIENCE_S)
    assert [str(o) for o in outcomes] == ["the engine has failed: MemoryError('nothing left')"] * 2
    assert all(isinstance(o, EngineClosed) for o in outcomes)
    with pytest.raises(EngineClosed, match=r"nothing left.*; restart it") as caught:
        engine.check_health()
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(EngineClosed):
        await answer(engine, request("late"))
    assert "the engine's step thread died" in caplog.text
    engine.close()


class LateEngine(Engine):
    """Comes back from `add` when the request may have had its first step already."""

    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        time.sleep(0.1)


async def test_a_piece_that_comes_before_its_reader_is_not_lost(tiny_chat: Path) -> None:
    engine = AsyncEngine(LateEngine(EngineConfig(model=str(tiny_chat), device="cpu")))
    busy = await begun(engine, request("busy", LONG))
    one = SamplingParams(max_tokens=1, temperature=0)
    said = await asyncio.wait_for(answer(engine, request("one", one)), timeout=PATIENCE_S)
    assert len(said.token_ids) == 1
    await busy.aclose()
    engine.close()
