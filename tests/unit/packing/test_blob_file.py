from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pgmoe.layout import PAGE
from pgmoe.memory import page_aligned
from pgmoe.packing.blob_file import BlobFile
from tests.support.left_over import open_files


@pytest.mark.parametrize("shift", [0, 8], ids=["page-aligned", "at an odd place"])
def test_pages_and_bytes_are_written_where_they_belong_and_the_rest_stays(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "blobs"
    path.write_bytes(b"\1" * 5 * PAGE)
    pages = page_aligned(2 * PAGE + shift)[shift:]
    pages.copy_(torch.randint(0, 256, (2 * PAGE,), dtype=torch.uint8))
    data = pages.numpy().tobytes()
    with BlobFile(path) as file:
        file.write(b"header", 0)
        file.write_pages(pages.numpy().data, 2 * PAGE)
        file.write_pages(pages.numpy().data, 5 * PAGE)
        file.sync()
        assert open_files(tmp_path)
    assert not open_files(tmp_path)
    before = b"header" + b"\1" * (2 * PAGE - 6)
    assert path.read_bytes() == before + data + b"\1" * PAGE + data


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with BlobFile(tmp_path / "blobs") as file:
        file.write(b"1", 0)
    assert (tmp_path / "blobs").stat().st_mode == (tmp_path / "usual").stat().st_mode
