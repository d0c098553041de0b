from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.errors import ConfigError
from pgmoe.new_file import check_new_file, check_writable_folder, write_new_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


def test_a_folder_that_is_there_or_can_be_made_is_fine_and_stays_as_it_is(tmp_path: Path) -> None:
    check_writable_folder(tmp_path)
    check_writable_folder(tmp_path / "a" / "b")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot write.*name another"):
        check_writable_folder(tmp_path / name)


def test_a_file_needs_a_folder_and_may_be_overwritten(tmp_path: Path, file: Path) -> None:
    check_new_file(file)
    check_new_file(tmp_path / "new")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_new_file(tmp_path / "nowhere" / "new")
    with pytest.raises(ConfigError, match="it is a folder; name a file in it"):
        check_new_file(tmp_path)
    with pytest.raises(ConfigError, match="is no folder that this user may write to"):
        check_new_file(file / "new")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    paths = [write_new_file(folder, "r", ".json", content) for content in (b"1", b"2", b"3")]
    assert [path.name for path in paths] == ["r.json", "r-2.json", "r-3.json"]
    assert [path.read_bytes() for path in paths] == [b"1", b"2", b"3"]


def test_a_folder_that_is_a_file_is_told_when_writing_too(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write_new_file(file, "r", ".json", b"")
