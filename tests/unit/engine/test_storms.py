"""Requests that come, leave, fail and time out in any order: afterwards nothing is left over."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgmoe.config import EngineConfig
from pgmoe.engine.async_engine import AsyncEngine
from pgmoe.engine.engine import Engine
from pgmoe.engine.llm import LLM
from pgmoe.errors import DeadlineExceeded, EngineOverloaded, InvalidRequest
from pgmoe.request import Completion, Request, RequestOutput, SamplingParams
from tests.support.transfers import PATIENCE_S

OPTIONS: dict[str, object] = {"device_memory": "30%", "num_readers": 2, "max_running": 3, "max_waiting": 5}
PROMPTS = ["B", "How far is the moon?", "naïve 日本語"]


def params(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def expected(tiny_chat: Path) -> dict[str, tuple[int, ...]]:
    """The first 12 tokens that follow each prompt."""
    with LLM(tiny_chat, device="cpu") as llm:
        return {p: a.token_ids for p, a in zip(PROMPTS, llm.generate(PROMPTS, params(12)), strict=True)}


class Client:
    """One request with a fate drawn by chance; `seen` counts the outcomes of all clients."""

    def __init__(self, engine: AsyncEngine, chance: random.Random, name: str, seen: Counter[str]) -> None:
        self.engine, self.name, self.seen = engine, name, seen
        self.prompt = chance.choice([*PROMPTS, ""])
        self.num_tokens = chance.randint(1, 12)
        self.leaves_after = chance.choice([None, None, chance.randint(0, 6)])
        self.timeout_s = chance.choice([None, None, None, 1e-6, 0.02])
        self.starts_after_s = chance.random() * 0.2
        self.is_cancelled_after_s = chance.choice([None, None, chance.random() * 0.1])

    def stays(self, timeout_s: float | None) -> None:
        """Make its fate certain: it comes before there is a queue, and does not leave."""
        self.prompt, self.timeout_s, self.starts_after_s = PROMPTS[0], timeout_s, 0.0
        self.leaves_after = self.is_cancelled_after_s = None

    async def live(self, expected: dict[str, tuple[int, ...]]) -> None:
        await asyncio.sleep(self.starts_after_s)
        try:
            got = await asyncio.wait_for(self.read(), self.is_cancelled_after_s)
        except (InvalidRequest, EngineOverloaded):
            self.seen["rejected"] += 1
        except DeadlineExceeded:
            self.seen["timeout"] += 1
        except TimeoutError:
            self.seen["cancelled"] += 1
        else:
            whole = got[-1].finished if got else False
            self.seen["length" if whole else "left"] += 1
            tokens = tuple(t for piece in got for t in piece.token_ids)
            assert tokens == expected[self.prompt][: len(tokens)]
            assert len(tokens) == self.num_tokens or not whole

    async def read(self) -> list[RequestOutput]:
        request = Request(
            request_id=self.name, prompt=self.prompt, params=params(self.num_tokens), timeout_s=self.timeout_s
        )
        got: list[RequestOutput] = []
        async for piece in self.engine.generate(request):
            got.append(piece)
            if len(got) == self.leaves_after:
                break
        return got


async def emptied(engine: AsyncEngine) -> None:
    """Wait until the last step has dropped those that left."""
    async with asyncio.timeout(PATIENCE_S):
        while engine.stats.num_running or engine.stats.num_waiting:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("seed", range(4))
async def test_any_clients_leave_an_engine_empty_and_well(
    tiny_chat: Path, expected: dict[str, tuple[int, ...]], seed: int
) -> None:
    engine = AsyncEngine(Engine(EngineConfig.parse({"model": str(tiny_chat), "device": "cpu", **OPTIONS})))
    chance, seen = random.Random(seed), Counter[str]()
    clients = [Client(engine, chance, f"r{n}", seen) for n in range(60)]
    clients[0].stays(timeout_s=None)
    clients[1].stays(timeout_s=1e-6)
    await asyncio.gather(*(client.live(expected) for client in clients))
    await emptied(engine)
    for prompt in PROMPTS:  # and the ids are free again
        request = Request(request_id=f"r{PROMPTS.index(prompt)}", prompt=prompt, params=params(12))
        pieces = [piece async for piece in engine.generate(request)]
        assert Completion.join(pieces).token_ids == expected[prompt]
    engine.check_health()
    stats = engine.stats
    engine.close()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert sum(seen.values()) == 60
    assert min(seen["rejected"], seen["length"], seen["timeout"]) > 0
    finished, gone = stats.finished, seen["left"] + seen["cancelled"]  # whose end may have come as they left
    assert seen["length"] + len(PROMPTS) <= finished["length"] <= seen["length"] + len(PROMPTS) + gone
    assert seen["rejected"] <= finished["rejected"] <= seen["rejected"] + gone
    assert seen["timeout"] <= finished["timeout"] <= seen["timeout"] + gone
    assert stats.finished["error"] == 0


def test_requests_added_and_aborted_by_many_threads_are_all_accounted_for(tiny_chat: Path) -> None:
    engine = Engine(EngineConfig.parse({"model": str(tiny_chat), "device": "cpu", **OPTIONS}))
    added, refused = Counter[str](), Counter[str]()

    def add(name: str, n: int, num_tokens: int) -> None:
        request = Request(request_id=f"{name}{n}", prompt_token_ids=(5, 6), params=params(num_tokens))
        try:
            engine.add(engine.accept(request))
        except EngineOverloaded:
            refused[name] += 1
        else:
            added[name] += 1

    def storm(name: str) -> None:
        chance = random.Random(name)
        for n in range(40):
            add(name, n, chance.randint(1, 6))
            if chance.random() < 0.5:
                engine.abort(f"{name}{chance.randint(0, n)}")
            if chance.random() < 0.2:
                threading.Event().wait(0.005)

    for n in range(9):  # before the first step, and one more than there is room for
        add("d", n, 3)
    engine.abort("d0")
    threads = [threading.Thread(target=storm, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    told = Counter[str]()
    while any(thread.is_alive() for thread in threads) or engine.has_work:
        for output in engine.step():
            assert output.piece is not None, output.error
            told[output.request_id] += 1
    finished = engine.stats.finished
    assert finished["rejected"] == refused.total() > 0
    assert finished["length"] + finished["cancelled"] == added.total()
    assert refused.total() + added.total() == 129
    assert finished["cancelled"] > 0
    assert len(told) >= finished["length"]
    assert (engine.stats.num_running, engine.stats.num_waiting) == (0, 0)
    assert engine.stats.generation_tokens == told.total()
    engine.close()


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, device="cpu", **OPTIONS) as llm:
        yield llm


@pytest.mark.parametrize("seed", range(3))
def test_streams_opened_read_and_dropped_at_random_give_their_own_answers(
    llm: LLM, expected: dict[str, tuple[int, ...]], seed: int
) -> None:
    chance = random.Random(seed)
    streams: list[tuple[str, list[int], Iterator[RequestOutput]]] = []
    for _ in range(80):
        act = chance.random()
        if act < 0.3 and len(streams) < 8:
            prompt = chance.choice(PROMPTS)
            streams.append((prompt, [], llm.stream(prompt, params(12))))
        elif act < 0.4:
            prompt = chance.choice(PROMPTS)
            assert llm.generate(prompt, params(12))[0].token_ids == expected[prompt]
        elif act < 0.5 and streams:
            streams.pop(chance.randrange(len(streams)))  # and the garbage collector closes it
        elif streams:
            prompt, got, stream = chance.choice(streams)
            got += [t for piece in [next(stream, None)] if piece for t in piece.token_ids]
            assert tuple(got) == expected[prompt][: len(got)]
    for prompt, got, stream in streams:
        got += [t for piece in stream for t in piece.token_ids]
        assert tuple(got) == expected[prompt]
    assert (llm.stats.num_running, llm.stats.num_waiting) == (0, 0)
