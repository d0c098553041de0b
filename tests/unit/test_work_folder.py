from __future__ import annotations

import errno
from pathlib import Path
from threading import Event, Thread

import pytest

from pgmoe.errors import ConfigError
from pgmoe.work_folder import publish, work_folder
from tests.support.transfers import PATIENCE_S


def fail(out: Path, error: Exception) -> None:
    """Write a file `a`, then fail so."""
    with work_folder(out, wait=False) as folder:
        (folder / "a").write_text("1")
        raise error


def test_what_a_block_that_failed_left_is_there_for_the_next_and_goes_with_its_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError):
        fail(out, ZeroDivisionError())
    with work_folder(out, wait=False) as folder:
        assert (folder / "a").read_text() == "1"
    assert list(out.parent.iterdir()) == []


def test_a_block_that_failed_before_it_wrote_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), work_folder(tmp_path / "out", wait=False):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_refused_write_is_told_with_the_way_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    way_out = rf"goes on from what is in {tmp_path}/\.out\.partial"
    with pytest.raises(ConfigError, match=rf"cannot write {out}: No space left on device; .*{way_out}"):
        fail(out, OSError(errno.ENOSPC, "No space left on device"))
    assert (tmp_path / ".out.partial" / "a").exists()


def test_who_does_not_wait_is_told_that_another_has_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with work_folder(out, wait=False) as folder:
        (folder / "a").write_text("1")
        with pytest.raises(ConfigError, match="another process is writing it"), work_folder(out, wait=False):
            pytest.fail("the block must not run")
        assert (folder / "a").read_text() == "1"


def test_who_waits_gets_a_folder_when_the_other_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    order: list[str] = []
    begun = Event()

    def wait() -> None:
        begun.set()
        with work_folder(out, wait=True) as folder:
            order.append("second")
            (folder / "b").write_text("2")

    with work_folder(out, wait=False) as folder:
        (folder / "a").write_text("1")
        second = Thread(target=wait)
        second.start()
        assert begun.wait(PATIENCE_S)
        second.join(0.3)
        assert second.is_alive()
        assert order == []
        order.append("first")
    second.join(PATIENCE_S)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_takes_an_empty_one_s_place_but_no_other_s(tmp_path: Path) -> None:
    for content in (None, "theirs"):
        folder, out = tmp_path / f"new-{content}", tmp_path / f"out-{content}"
        folder.mkdir()
        out.mkdir()
        (folder / "a").write_text("mine")
        if content is None:
            publish(folder, out)
            assert (out / "a").read_text() == "mine"
            assert not folder.exists()
        else:
            (out / "a").write_text(content)
            with pytest.raises(OSError, match="not empty"):
                publish(folder, out)
            assert (out / "a").read_text() == content
