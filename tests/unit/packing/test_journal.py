from __future__ import annotations

from pathlib import Path

import pytest

from pgmoe.layout import ExpertId
from pgmoe.packing.journal import DENSE, Journal
from tests.support.full_disks import largest_file

WRITTEN = {DENSE: 2**32 - 1, ExpertId(0, 0): 0, ExpertId(12, 345): 678}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of a few parts."""
    with Journal(tmp_path / "journal", "heading") as journal:
        assert journal.begun_anew
        for expert, crc32 in WRITTEN.items():
            journal.add(expert, crc32)
        assert journal.checksums == WRITTEN
    return tmp_path / "journal"


def test_what_was_noted_is_there_for_the_next(path: Path) -> None:
    with Journal(path, "heading") as journal:
        assert not journal.begun_anew
        assert journal.checksums == WRITTEN


@pytest.mark.parametrize("heading", ["another", "heading of something else", "head"])
def test_a_journal_of_something_else_is_begun_anew(path: Path, heading: str) -> None:
    with Journal(path, heading) as journal:
        assert journal.begun_anew
        assert journal.checksums == {}
    assert path.read_text() == f"{heading}\n"


def test_wherever_a_kill_cuts_it_the_whole_lines_count_and_more_can_be_added(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        num_lines = content[:length].count(b"\n")
        expected = dict(list(WRITTEN.items())[: max(0, num_lines - 1)])
        with Journal(path, "heading") as journal:
            assert journal.begun_anew == (num_lines == 0)
            assert journal.checksums == expected
            journal.add(ExpertId(9, 9), 9)
        with Journal(path, "heading") as journal:
            assert journal.checksums == {**expected, ExpertId(9, 9): 9}


def test_wherever_a_full_disk_cuts_a_line_it_is_told_and_the_lines_before_count(path: Path) -> None:
    whole = path.read_bytes()
    for room in range(len("1 2 3\n")):
        path.write_bytes(whole)
        with (
            Journal(path, "heading") as journal,
            pytest.raises(OSError, match="too large"),
            largest_file(len(whole) + room),
        ):
            journal.add(ExpertId(1, 2), 3)
        assert journal.checksums == WRITTEN
        with Journal(path, "heading") as journal:
            assert journal.checksums == WRITTEN
            journal.add(ExpertId(1, 2), 3)
        assert path.read_bytes() == whole + b"1 2 3\n"


def test_a_heading_that_a_full_disk_refuses_is_told_and_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too large"), largest_file(3):
        Journal(tmp_path / "journal", "heading")
    with Journal(tmp_path / "journal", "heading") as journal:
        assert journal.begun_anew


def test_a_journal_that_a_power_cut_filled_with_zeros_is_begun_anew(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(64) + b"\n")
    with Journal(path, "heading") as journal:
        assert journal.begun_anew
        assert journal.checksums == {}
    assert path.read_text() == "heading\n"
