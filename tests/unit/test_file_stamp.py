from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgmoe.file_stamp import FileStamp
from tests.support.damage import Original, flip_bit

SECOND = 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """5000 bytes, last written at a round time long ago."""
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    os.utime(path, ns=(0, 1_000_000_000 * SECOND))
    return path


@pytest.fixture
def stamp(path: Path) -> Iterator[FileStamp]:
    descriptor = os.open(path, os.O_RDONLY)
    yield FileStamp(descriptor)
    os.close(descriptor)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"1")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: flip_bit(path, 0),
        append,
        lambda path: os.truncate(path, 4999),
        lambda p: p.write_bytes(b""),
    ],
    ids=["a bit", "longer", "shorter", "empty"],
)
def test_every_write_shows_until_the_file_is_put_back(
    path: Path, stamp: FileStamp, change: Callable[[Path], object]
) -> None:
    before = Original(path)
    assert stamp.change() is None
    change(path)
    assert stamp.change() is not None
    before.put_back()
    assert stamp.change() is None


def test_what_was_what_is_and_the_way_out_are_told(path: Path, stamp: FileStamp) -> None:
    os.truncate(path, 2048)
    os.utime(path, ns=(0, 1_000_000_060 * SECOND + 7 * 10**6))
    assert stamp.change() == (
        "the file was changed while it is open, from 4.9 KiB written at 2001-09-09 01:46:40.000 UTC to "
        "2.0 KiB written at 2001-09-09 01:47:40.007 UTC; put back what it was, with its time (cp -p), or "
        "start anew with what it is now"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.rename(path, path.with_name("elsewhere")),
        Path.unlink,
        lambda path: os.chmod(path, 0o400),
        Path.read_bytes,
    ],
    ids=["renamed", "unlinked", "permissions", "read"],
)
def test_what_leaves_the_content_alone_does_not_count(
    path: Path, stamp: FileStamp, change: Callable[[Path], object]
) -> None:
    change(path)
    assert stamp.change() is None
