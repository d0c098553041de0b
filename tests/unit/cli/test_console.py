from __future__ import annotations

import io

import pytest
from rich.console import Console

from pgmoe.cli.console import bytes_bar


def test_without_a_terminal_there_is_a_line_at_start_and_end() -> None:
    out = io.StringIO()
    with bytes_bar("Writing x", Console(file=out, force_terminal=False)) as progress:
        assert out.getvalue() == "Writing x ...\n"
        for done in range(5):
            progress(done * 1024, 4096)
    assert out.getvalue() == "Writing x ...\nWriting x: 4.0 KiB in 0 s\n"


def test_a_failure_has_no_line_that_says_done() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="broken"), bytes_bar("Writing x", Console(file=out)):
        raise ValueError("broken")
    assert out.getvalue() == "Writing x ...\n"


def test_a_terminal_shows_bytes_done_of_all() -> None:
    out = io.StringIO()
    with bytes_bar("Writing x", Console(file=out, force_terminal=True, width=120)) as progress:
        progress(4096, 4096)
    assert "4.0/4.0 KiB" in out.getvalue()


def test_work_that_copied_nothing_speaks_of_no_bytes() -> None:
    out = io.StringIO()
    with bytes_bar("Loading x", Console(file=out)):
        pass
    assert out.getvalue() == "Loading x ...\nLoading x: 0 s\n"
