"""Files that fail or change while an engine serves from them: real files, read by the real stores."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pgmoe.config import EngineConfig
from pgmoe.engine.async_engine import AsyncEngine
from pgmoe.engine.engine import Engine
from pgmoe.errors import ExpertReadError, WeightReadError
from pgmoe.gating.recording import RecordingGating
from pgmoe.layout import ExpertId
from pgmoe.models.loader import read_plan
from pgmoe.request import Completion, Request, SamplingParams
from pgmoe.routing import Gating
from tests.conftest import TinyCheckpoints
from tests.support.checkpoints import save_tiny
from tests.support.damage import Original, flip_bit
from tests.support.faulty_reads import ALWAYS, FaultyReads, middle_of
from tests.support.packs import packed
from tests.support.runs import answer

PROMPT = (5, 6, 7, 8)
Tokens = list[tuple[object, ...]]
both_ways = pytest.mark.parametrize("direct_io", [True, False], ids=["direct", "buffered"])
shards_and_pack = pytest.mark.parametrize("kind", ["shards", "pack"])


@contextmanager
def load(folder: Path, wrap: Callable[[Gating], Gating] | None = None, **options: object) -> Iterator[Engine]:
    """An engine with so few slots that every answer reads experts; a pack's check is not under way."""
    few = {"model": str(folder), "device": "cpu", "device_memory": "10%", "verify_pack": False}
    engine = Engine(EngineConfig.parse({**few, **options}), wrap_gating=wrap)
    try:
        yield engine
    finally:
        engine.close()


def said(engine: Engine, prompt: tuple[int, ...] = PROMPT, num_tokens: int = 6) -> Tokens:
    """A greedy answer's tokens with their log probabilities."""
    return [(piece.token_ids, piece.logprobs) for piece in answer(engine, prompt, num_tokens)]


@pytest.fixture(scope="module")
def models(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in shards, the embedding in one of its own, and as a pack. Not to be changed."""
    shards = tiny("mixtral", torch.float32, "200KB")
    return {"shards": shards, "pack": packed(shards, tmp_path_factory.mktemp("packs") / "pack")}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> Tokens:
    """What an engine that holds all experts says."""
    with load(models["shards"], device_memory="100%") as engine:
        return said(engine)


@pytest.fixture
def folder(models: dict[str, Path], kind: str, tmp_path: Path) -> Path:
    """One of the models, to be changed."""
    return shutil.copytree(models[kind], tmp_path / "model")


@pytest.fixture
def other(kind: str, tmp_path: Path) -> Path:
    """Another model of the same shapes: its files have the same names and sizes."""
    shards = save_tiny("mixtral", tmp_path / "other", torch.float32, seed=1, max_shard_size="200KB")
    return shards if kind == "shards" else packed(shards, tmp_path / "other-pack")


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def expert_files(engine: Engine) -> list[Path]:
    """All but the file of the embedding and other dense weights."""
    layers = engine.loaded.layers
    return sorted({Path(e.path) for layer in layers for extents in layer.extents for e in extents})


def needed(folder: Path, prompts: list[tuple[int, ...]]) -> tuple[list[set[ExpertId]], list[Tokens]]:
    """The experts that each prompt's first token takes, and that token."""
    recorders: list[RecordingGating] = []

    def record(inner: Gating) -> Gating:
        recorders.append(RecordingGating(inner))
        return recorders[0]

    with load(folder, record) as engine:
        tokens = [said(engine, prompt, 1) for prompt in prompts]
        sizes = [layer.num_experts for layer in engine.loaded.layers]
    needs = [
        {ExpertId(layer.layer, e) for layer in step.layers for row in layer.ids for e in row}
        for step in recorders[0].steps(sizes)
    ]
    return needs, tokens


def needed_by_one(folder: Path) -> ExpertId:
    """An expert of the last layer that PROMPT needs."""
    ((need,), _) = needed(folder, [PROMPT])
    return max(need)


def needed_by_half(needs: list[set[ExpertId]]) -> ExpertId:
    """An expert that some prompts need and others do not."""

    def unlike_half(expert: ExpertId) -> int:
        return abs(2 * sum(expert in need for need in needs) - len(needs))

    found = min(sorted(set.union(*needs)), key=unlike_half)
    assert unlike_half(found) < len(needs)
    return found


@shards_and_pack
@both_ways
@pytest.mark.parametrize("host_memory", ["0", "20%"])
@pytest.mark.parametrize(("gating", "times"), [("on_demand", 1), ("speculative", ALWAYS)])
def test_a_read_that_the_disk_fails_ends_the_request_that_needs_it_and_no_later_one(
    folder: Path,
    expected: Tokens,
    monkeypatch: pytest.MonkeyPatch,
    direct_io: bool,
    host_memory: str,
    gating: str,
    times: int,
) -> None:
    missing = needed_by_one(folder)
    with load(folder, direct_io=direct_io, host_memory=host_memory, gating=gating) as engine:
        layer = engine.loaded.layers[missing.layer]
        path, offset = middle_of(layer, missing.expert)
        with monkeypatch.context() as patch:
            fault = FaultyReads(path, offset, times).install(patch)
            named = rf"^expert {missing.expert} of {layer.name}: {path} from byte \d+: .*Input/output error$"
            with pytest.raises(ExpertReadError, match=named):
                said(engine)
            assert 1 <= fault.num_failed <= times
        for _ in range(2):
            assert said(engine) == expected
        assert engine.stats.finished == {"error": 1, "length": 2}


@pytest.mark.parametrize("kind", ["shards"])
async def test_requests_beside_one_that_a_failing_disk_ends_are_answered_as_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(token,) for token in range(5, 21)]
    needs, expected = needed(folder, prompts)
    missing = needed_by_half(needs)
    layer = read_plan(str(folder)).layers[missing.layer]
    engine = AsyncEngine.from_config(
        EngineConfig.parse({"model": str(folder), "device": "cpu", "device_memory": "10%", "max_running": 8})
    )
    path, offset = middle_of(layer, missing.expert)
    FaultyReads(path, offset, ALWAYS).install(monkeypatch)

    async def ask(prompt: tuple[int, ...]) -> Completion:
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        request = Request(request_id=str(prompt), prompt_token_ids=prompt, params=params)
        return Completion.join([piece async for piece in engine.generate(request)])

    found = await asyncio.gather(*map(ask, prompts), return_exceptions=True)
    engine.check_health()
    engine.close()
    for need, outcome, tokens in zip(needs, found, expected, strict=True):
        if missing in need:
            assert isinstance(outcome, ExpertReadError)
            assert str(outcome).startswith(f"expert {missing.expert} of {layer.name}: {path} from byte ")
        else:
            assert isinstance(outcome, Completion), outcome
            assert outcome.token_ids == tokens[0][0]


@shards_and_pack
@both_ways
def test_a_file_cut_while_serving_ends_requests_by_name_until_it_is_whole(
    folder: Path, expected: Tokens, direct_io: bool
) -> None:
    missing = needed_by_one(folder)
    with load(folder, direct_io=direct_io) as engine:
        assert said(engine) == expected
        layer = engine.loaded.layers[missing.layer]
        path, offset = middle_of(layer, missing.expert)
        whole = Original(path)
        os.truncate(path, offset)
        for _ in range(2):
            with pytest.raises(ExpertReadError, match=rf"^expert \d of {layer.name}: {path} from byte \d+: "):
                said(engine)
        whole.put_back()
        assert said(engine) == expected


@shards_and_pack
@both_ways
@pytest.mark.parametrize("by", ["another model", "zeros", "a shorter file", "nothing"])
def test_a_model_whose_files_are_replaced_is_served_on_as_it_was(
    folder: Path, other: Path, expected: Tokens, direct_io: bool, by: str
) -> None:
    with load(folder, direct_io=direct_io) as engine:
        for path in weights_of(folder):
            new, size = other / path.name, path.stat().st_size
            if by == "nothing":
                path.unlink()
                continue
            if by != "another model":
                new.write_bytes(bytes(size if by == "zeros" else size // 2))
            assert (new.stat().st_size == size) == (by != "a shorter file")
            os.replace(new, path)
        read = engine.stats.experts.num_bytes
        for _ in range(2):
            assert said(engine) == expected
        assert engine.stats.experts.num_bytes > read
    if by == "another model":
        if folder.joinpath("pack.json").exists():
            shutil.copy(other / "pack.json", folder)
        with load(folder) as engine:
            assert said(engine) != expected


@shards_and_pack
@both_ways
def test_no_token_comes_from_a_file_that_another_model_was_written_into(
    folder: Path, other: Path, expected: Tokens, direct_io: bool
) -> None:
    with load(folder, direct_io=direct_io) as engine:
        assert said(engine) == expected
        files = expert_files(engine)
        before = [Original(path) for path in files]
        for path in files:
            inode = path.stat().st_ino
            path.write_bytes((other / path.name).read_bytes())
            assert path.stat().st_ino == inode
        named = r"^expert \d of model\.layers\.\d\.mlp\.experts: (\S+) from byte \d+: the file was changed"
        with pytest.raises(ExpertReadError, match=named) as caught:
            said(engine)
        assert any(str(path) in str(caught.value) for path in files)
        for original in before:
            original.put_back()
        assert said(engine) == expected


@shards_and_pack
def test_no_embedding_comes_from_a_file_that_was_written_into(
    folder: Path, other: Path, expected: Tokens
) -> None:
    with load(folder) as engine:
        path = Path(engine.loaded.checkpoint.tensors["model.embed_tokens.weight"].path)
        before = Original(path)
        path.write_bytes((other / path.name).read_bytes())
        with pytest.raises(
            WeightReadError, match=rf"^model\.embed_tokens\.weight: {path}: the file was changed"
        ):
            said(engine)
        before.put_back()
        assert said(engine) == expected


@pytest.mark.parametrize("kind", ["pack"])
def test_a_blob_that_changes_in_its_file_ends_the_requests_that_need_it_and_no_other(folder: Path) -> None:
    prompts = [(token,) for token in range(5, 15)]
    needs, expected = needed(folder, prompts)
    damaged = needed_by_half(needs)
    with load(folder) as engine:
        layer = engine.loaded.layers[damaged.layer]
        path, offset = middle_of(layer, damaged.expert)
        flip_bit(path, offset)
        for prompt, need, tokens in zip(prompts, needs, expected, strict=True):
            if damaged in need:
                with pytest.raises(
                    ExpertReadError, match=rf"^expert {damaged.expert} of {layer.name}: {path}"
                ):
                    said(engine, prompt, 1)
            else:
                assert said(engine, prompt, 1) == tokens
        flip_bit(path, offset)  # the bytes are right again, whatever the time
        assert [said(engine, prompt, 1) for prompt in prompts] == expected
