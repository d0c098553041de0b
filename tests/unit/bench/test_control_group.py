from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from pgmoe.bench.control_group import ControlGroup, _parent, memory_limit
from pgmoe.errors import ConfigError
from tests.unit.bench.limits import needs_limits

MIB = 2**20


def _take(group: ControlGroup, num_bytes: int) -> None:
    group.join()
    bytearray(num_bytes)[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * (num_bytes // os.sysconf("SC_PAGE_SIZE"))


def _read(group: ControlGroup, path: str) -> None:
    group.join()
    with open(path, "rb") as file:
        while file.read(MIB):
            pass


def _status(target: object, *arguments: object) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    return process.exitcode


@needs_limits
def test_a_process_that_takes_more_than_its_limit_is_ended() -> None:
    with memory_limit(64 * MIB) as group:
        assert _status(_take, group, 16 * MIB) == 0
        assert _status(_take, group, 128 * MIB) == -9


@needs_limits
def test_pages_of_files_count_but_end_no_process(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(MIB) * 128)
    os.sync()
    with memory_limit(64 * MIB) as group:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        assert _status(_read, group, str(path)) == 0
        (used,) = [
            int(found.read_text())
            for name in ("memory.usage_in_bytes", "memory.current")
            if (found := group.folder / name).exists()
        ]
        assert used <= 64 * MIB


@needs_limits
def test_a_group_is_gone_at_the_end_even_of_a_failure() -> None:
    def fail() -> None:
        with memory_limit(64 * MIB) as group:
            folders.append(group.folder)
            assert group.folder.is_dir()
            raise KeyError

    folders: list[Path] = []
    with pytest.raises(KeyError):
        fail()
    assert not folders[0].exists()


def test_where_no_group_can_be_made_the_message_says_what_is_needed(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    group = memory_limit(64 * MIB, root=missing, membership=missing)
    with pytest.raises(ConfigError, match=r"cannot limit memory to 64\.0 MiB.*control groups.*--no-limits"):
        group.__enter__()


@pytest.mark.parametrize(
    ("membership", "visible", "expected"),
    [
        ("4:memory:/a/b\n0::/\n", "memory/a/b", (1, "memory/a/b")),
        ("4:cpu,memory:/docker/x\n", "memory", (1, "memory")),
        ("0::/user/session\n", "user/session", (2, "user")),
        ("0::/docker/x\n", ".", (2, ".")),
        ("0::/\n", ".", (2, ".")),
    ],
)
def test_a_group_is_made_where_this_process_may_have_one(
    tmp_path: Path, membership: str, visible: str, expected: tuple[int, str]
) -> None:
    root, listed = tmp_path / "cgroup", tmp_path / "membership"
    (root / visible).mkdir(parents=True)
    listed.write_text(membership)
    assert _parent(root, listed) == (expected[0], root / expected[1])
