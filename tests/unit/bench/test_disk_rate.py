from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgmoe.bench import disk_rate
from pgmoe.bench.disk_rate import best_rate, read_rate, read_rates
from pgmoe.layout import PAGE

KIB = 2**10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(300 * KIB))
    if read_rate(path, 1, PAGE, PAGE) is None:
        pytest.skip("this file system has no O_DIRECT")
    return path


def test_as_many_bytes_are_read_as_asked_for_by_all_threads_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        num_bytes = preadv(descriptor, buffers, offset)
        reads.append((offset, num_bytes))
        return num_bytes

    monkeypatch.setattr(disk_rate.os, "preadv", counted)
    rate = read_rate(path, 2, 64 * KIB, 512 * KIB)
    assert rate is not None
    assert rate.bytes_per_s > 0
    assert [num_bytes for _, num_bytes in reads] == [64 * KIB] * 8
    assert all(offset % PAGE == 0 for offset, _ in reads)
    assert len({offset for offset, _ in reads}) > 4


def test_the_best_way_of_reading_is_one_of_those_measured(path: Path) -> None:
    rates = read_rates(path, 64 * KIB, blocks=[16 * KIB, 32 * KIB], threads=[1, 2])
    assert [(r.block_bytes, r.num_threads) for r in rates] == [
        (block * KIB, n) for block in (16, 32) for n in (1, 2)
    ]
    best = best_rate(path, 64 * KIB, blocks=[32 * KIB])
    assert best is not None
    assert best.block_bytes == 32 * KIB


def test_a_file_below_a_block_has_no_rate(path: Path) -> None:
    assert read_rate(path, 1, 512 * KIB, 512 * KIB) is None
    assert best_rate(path, 512 * KIB, blocks=[512 * KIB]) is None
