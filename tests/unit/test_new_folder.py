from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.errors import ConfigError
from pgmoe.new_folder import new_folder


def test_the_folder_appears_with_the_end_of_the_block(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out, 0) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "1"


def test_a_folder_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with new_folder(out, 0) as folder:
            (folder / "a").write_text("mine")
            out.mkdir()
            (out / "a").write_text("theirs")

    with pytest.raises(ConfigError, match="cannot write"):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (out / "a").read_text() == "theirs"


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"needs 1048576\.0 TiB, and its disk has .* free"),
        new_folder(tmp_path / "deep" / "out", 2**60),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []
