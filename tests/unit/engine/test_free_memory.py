from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pgmoe.engine.free_memory import allocating, cgroup_rooms, free_memory, free_ram
from pgmoe.errors import ConfigError
from pgmoe.memory import page_aligned

CPU = torch.device("cpu")


def test_free_memory_is_some_but_not_more_than_there_is() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_ram() <= total
    assert 0 < free_memory(CPU) <= total


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(text + "\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    """Lines as /proc/self/cgroup has them, of both versions."""
    path = tmp_path / "cgroup"
    path.write_text("9:name=systemd:/\n4:memory:/jobs/one\n2:cpu,cpuacct:/\n0::/jobs/one\n")
    return path


def test_what_control_groups_leave_counts_cache_as_free(tmp_path: Path, membership: Path) -> None:
    root = tmp_path / "v2"
    write_group(root / "jobs/one", memory_max="1000", memory_current="700", memory_stat="inactive_file 50")
    write_group(root / "jobs", memory_max="max", memory_current="900", memory_stat="anon 900")
    assert cgroup_rooms(root, membership) == [350]
    write_group(root / "jobs", memory_max="1000")
    assert sorted(cgroup_rooms(root, membership)) == [100, 350]


def test_the_first_version_of_control_groups_is_heeded_too(tmp_path: Path, membership: Path) -> None:
    root = tmp_path / "v1"
    write_group(
        root / "memory/jobs/one",
        memory_limit_in_bytes="1000",
        memory_usage_in_bytes="1200",  # as it may be for a moment
        memory_stat="inactive_file 1\ntotal_inactive_file 30",
    )
    assert cgroup_rooms(root, membership) == [0]


def test_groups_that_a_container_does_not_see_leave_its_own(tmp_path: Path, membership: Path) -> None:
    root = tmp_path / "v2"
    write_group(root, memory_max="500", memory_current="100", memory_stat="inactive_file 0")
    assert cgroup_rooms(root, membership) == [400]
    assert cgroup_rooms(tmp_path / "none", membership) == []
    assert cgroup_rooms(root, tmp_path / "no file") == []


def test_memory_that_cannot_be_had_is_told_with_what_is_free_and_a_way_out() -> None:
    message = r"slots need 1024\.0 TiB, and of the memory of cpu .*iB are free; give less"
    with pytest.raises(ConfigError, match=message), allocating("slots", 2**50, CPU, "give less"):
        page_aligned(2**50)


def test_other_errors_while_allocating_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="negative dimension"), allocating("slots", 1, CPU, "give less"):
        torch.empty(-5000)
