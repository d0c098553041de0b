"""Markdown that all reports share."""

from __future__ import annotations

from collections.abc import Sequence

from pgmoe.bench.machine import Machine
from pgmoe.bench.result import Record


def heading(record: Record) -> str:
    """What was measured, when, and of which code."""
    dirty = ", with uncommitted changes" if record.commit.endswith("+") else ""
    return f"### {record.name}, {record.date[:10]}, commit {record.commit.rstrip('+')}{dirty}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    lines = [list(columns), ["---", *(["--:"] * (len(columns) - 1))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def conditions(record: Record) -> str:
    """What the numbers hold for, the machine included."""
    listed = "\n".join(f"- {key}: {value}" for key, value in record.conditions.items())
    return f"{listed}\n\n{_machine(record.machine)}"


def gb(num_bytes: float) -> str:
    """Decimal gigabytes."""
    return f"{num_bytes / 1e9:.2f} GB"


def _machine(machine: Machine) -> str:
    disk = machine.disk_bytes_per_s
    parts = [
        f"{machine.num_cores} cores of {machine.processor} ({', '.join(machine.flags)})",
        f"{machine.ram_bytes / 2**30:.0f} GiB RAM",
        f"accelerator: {machine.accelerator or 'none'}",
        "disk: no direct reads" if disk is None else f"disk: {disk / 1e9:.2f} GB/s in direct reads of 4 MiB",
        f"Linux {machine.kernel}, Python {machine.python}",
        ", ".join(f"{name} {number}" for name, number in machine.libraries.items()),
    ]
    return "Machine: " + "; ".join(parts) + "."
