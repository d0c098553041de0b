"""`pack: auto` on a disk that takes no more: told at the start, nothing that was written is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.config import EngineConfig
from pgmoe.engine.engine import Engine
from pgmoe.engine.tiers import Progress
from pgmoe.errors import ConfigError
from pgmoe.models.pack import is_pack
from tests.conftest import TinyCheckpoints
from tests.support.full_disks import fill, largest_file, small_disk
from tests.support.runs import answer

MIB = 2**20
Said = list[tuple[object, ...]]


def say(model: Path, progress: Progress | None = None, **options: object) -> Said:
    """Start an engine and let it answer."""
    given = {"model": str(model), "device": "cpu", "device_memory": "20%", **options}
    engine = Engine(EngineConfig.parse(given), progress)
    try:
        return [(piece.token_ids, piece.logprobs) for piece in answer(engine, (5, 6, 7, 8), 6)]
    finally:
        engine.close()


def auto(folder: Path) -> dict[str, object]:
    return {"pack": "auto", "pack_folder": str(folder)}


@pytest.fixture(scope="module")
def expected(tiny: TinyCheckpoints) -> Said:
    """What an engine that holds all experts says."""
    return say(tiny("mixtral"), device_memory="100%")


@pytest.mark.parametrize("room", [20_000, 400_000], ids=["dense weights", "experts"])
def test_a_pack_that_the_disk_refuses_is_told_and_the_model_served_without_or_once_there_is_room(
    tiny: TinyCheckpoints, tmp_path: Path, expected: Said, room: int
) -> None:
    model, cache = tiny("mixtral"), tmp_path / "cache"
    refused = (
        rf"cannot write {cache}/\S+: File too large; .*the next try goes on from what is in {cache}/\S+; .*"
        "or set pack: off, or another pack_folder"
    )
    with pytest.raises(ConfigError, match=refused), largest_file(room):
        say(model, **auto(cache))
    (unfinished,) = cache.iterdir()
    assert unfinished.name.startswith(".")
    assert say(model, pack="off") == expected
    assert say(model, **auto(cache)) == expected
    (whole,) = cache.iterdir()
    assert unfinished.name == f".{whole.name}.partial"


def test_a_disk_that_fills_while_a_model_is_packed_is_told_and_with_space_again_it_is_packed(
    tiny: TinyCheckpoints, tmp_path: Path, expected: Said
) -> None:
    model, disk = tiny("mixtral"), tmp_path / "disk"

    def fill_half_way(done: int, total: int) -> None:
        if done >= total // 2 and not (disk / "filler").exists():
            fill(disk)

    with small_disk(disk, 4 * MIB) as mounted:
        if not mounted:
            pytest.skip("no file system may be mounted here")
        with pytest.raises(
            ConfigError, match=rf"cannot write {disk}/\S+: No space left on device; once that"
        ):
            say(model, fill_half_way, **auto(disk))
        with pytest.raises(ConfigError, match=rf"{disk}/\S+ needs .*has 0 B free.*pack: off, or another"):
            say(model, **auto(disk))
        assert say(model, pack="off") == expected
        (disk / "filler").unlink()
        assert say(model, **auto(disk)) == expected
        assert [is_pack(path) for path in disk.iterdir()] == [True]
