"""How much memory there is to take: of the machine, of the control group that holds us, of a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pgmoe.errors import ConfigError
from pgmoe.units import format_bytes

_CGROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""For each version: the files with limit and use, and memory.stat's name for what is only cache."""


def free_ram() -> int:
    """Bytes of RAM that are free or only cache, and that this process' control groups let it take."""
    return min([_free_by_meminfo(), *cgroup_rooms(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def free_memory(device: torch.device) -> int:
    """Free bytes of an accelerator's own memory; of RAM for the CPU."""
    if device.type == "cpu":
        return free_ram()
    free: int = torch.get_device_module(device).mem_get_info(device)[0]
    return free


def cgroup_rooms(root: Path, membership: Path) -> list[int]:
    """Bytes left in each control group with a limit, of those that `membership` lists and those above them.

    In a container the groups listed may not be visible, but `root` itself is then its own.
    """
    rooms = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, top = (1, root / "memory") if controllers else (2, root)
        group = top / name.strip("/")
        above = [group, *group.parents]
        for folder in above[: above.index(top) + 1]:
            rooms += _room(folder, version)
    return rooms


@contextmanager
def allocating(what: str, num_bytes: int, device: torch.device, way_out: str) -> Iterator[None]:
    """Raise ConfigError, with what was needed and what is free, if `device` has not that much memory."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{what} need {format_bytes(num_bytes)}, and of the memory of {device} "
            f"{format_bytes(free_memory(device))} are free; {way_out}"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """torch's pinned allocator raises a plain RuntimeError, the operating system an OSError."""
    phrases = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(p in str(error) for p in phrases)


def _free_by_meminfo() -> int:
    with open("/proc/meminfo", encoding="ascii") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _room(group: Path, version: int) -> list[int]:
    """What is left in one group; nothing if it has no limit or cannot be seen."""
    limit_file, used_file, cache_name = _CGROUP_FILES[version]
    try:
        limit = (group / limit_file).read_text().strip()
        used = int((group / used_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    if limit == "max":
        return []
    return [max(0, int(limit) - used + int(stat.get(cache_name, 0)))]
