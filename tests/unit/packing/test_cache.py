from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from pgmoe.errors import ConfigError
from pgmoe.packing.cache import cached_pack
from tests.conftest import TinyCheckpoints
from tests.support.damage import WEIGHTS, edit_config
from tests.support.packs import contents, packed
from tests.support.transfers import PATIENCE_S

SECOND = 10**9


@pytest.fixture
def model(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("mixtral"), tmp_path / "model")


class Progress:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))


def test_a_model_is_packed_once_with_progress(model: Path, tmp_path: Path) -> None:
    first, second = Progress(), Progress()
    folder = cached_pack(str(model), str(tmp_path / "cache"), first)
    assert first.told[-1][0] == first.told[-1][1]
    assert contents(Path(folder)) == contents(packed(model, tmp_path / "expected"))
    assert cached_pack(str(model), str(tmp_path / "cache"), second) == folder
    assert second.told == []
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == [folder]


def test_the_pack_is_called_as_the_model_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    folder = cached_pack(str(model), cache)
    assert Path(folder).name.startswith("model-")
    monkeypatch.chdir(model)
    assert cached_pack(".", cache) == folder
    monkeypatch.setattr("pgmoe.models.checkpoint.resolve_folder", lambda name: model)  # no hub here
    assert Path(cached_pack("org/tiny-moe", cache)).name == Path(folder).name.replace("model-", "tiny-moe-")


def test_a_pack_is_served_as_it_is(model: Path, tmp_path: Path) -> None:
    out = str(packed(model, tmp_path / "pack"))
    assert cached_pack(out, str(tmp_path / "cache")) == out
    assert not (tmp_path / "cache").exists()


def retouch_weights(model: Path) -> None:
    stat = (model / WEIGHTS).stat()
    os.utime(model / WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns + SECOND))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: edit_config(model, rope_theta=5000.0),
        lambda model: (model / "chat_template.jinja").write_text("{{ messages }}"),
        lambda model: (model / "generation_config.json").unlink(),
        retouch_weights,
    ],
    ids=["config", "template", "generation config", "weights"],
)
def test_a_changed_model_is_packed_anew(
    model: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    before = cached_pack(str(model), str(tmp_path / "cache"))
    change(model)
    after = cached_pack(str(model), str(tmp_path / "cache"))
    assert after != before
    assert contents(Path(after)) == contents(packed(model, tmp_path / "expected"))


def test_who_comes_while_another_packs_waits_and_takes_that_one_s(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, go_on, has_to_wait = Event(), Event(), Event()
    waiting = Progress()
    folders = []

    def hold(done: int, total: int) -> None:
        at_work.set()
        assert go_on.wait(PATIENCE_S)

    def lock(descriptor: int, how: int) -> None:
        try:
            flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            has_to_wait.set()
            flock(descriptor, how)

    def start(progress: Callable[[int, int], None]) -> Thread:
        thread = Thread(
            target=lambda: folders.append(cached_pack(str(model), str(tmp_path / "cache"), progress))
        )
        thread.start()
        return thread

    flock = fcntl.flock
    monkeypatch.setattr("pgmoe.work_folder.fcntl.flock", lock)
    first = start(hold)
    assert at_work.wait(PATIENCE_S)
    second = start(waiting)  # from here on the first has it, until it is whole
    assert has_to_wait.wait(PATIENCE_S)
    go_on.set()
    for thread in (first, second):
        thread.join(PATIENCE_S)
    assert len(set(folders)) == 1
    assert len(folders) == 2
    assert waiting.told == []
    assert contents(Path(folders[0])) == contents(packed(model, tmp_path / "expected"))
    assert [str(path) for path in (tmp_path / "cache").iterdir()] == folders[:1]


def test_too_little_disk_names_the_folder_and_the_ways_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pgmoe.new_folder.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        ConfigError,
        match=rf"{tmp_path}/cache/model-\w+ needs 2.0 MiB.*1000 B free.*pack: off, or another pack_folder",
    ):
        cached_pack(str(model), str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=rf"cannot write {tmp_path}/cache/.*pack: off"):
        cached_pack(str(model), str(tmp_path / "cache"))
