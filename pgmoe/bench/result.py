"""The result of a benchmark: one JSON file that says all there is to say of it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

import pgmoe
from pgmoe.bench.compare import Series
from pgmoe.bench.machine import Machine
from pgmoe.new_file import write_new_file


@dataclass(frozen=True)
class Pair:
    """Two arms whose ratio the benchmark is about."""

    arm: str
    baseline: str


@dataclass(frozen=True)
class Record:
    """What every result file says, whatever was measured."""

    name: str
    date: str
    """UTC, ISO 8601."""
    commit: str
    """Of the code that ran; `+` after it: with changes not committed; `unknown` outside a repository."""
    machine: Machine
    conditions: dict[str, str]
    """What was run and how, in words."""

    def save(self, folder: Path) -> Path:
        """Write `<name>-<day>-<commit>.json` and return its path; see `write_new_file`."""
        stem = f"{self.name}-{self.date[:10]}-{self.commit.rstrip('+')}"
        return write_new_file(folder, stem, ".json", TypeAdapter(type(self)).dump_json(self) + b"\n")


@dataclass(frozen=True)
class Result(Record):
    """Arms beside each other: conditions and rows of one run."""

    pairs: tuple[Pair, ...]
    series: tuple[Series, ...]
    texts: tuple[str, ...] | None = None
    """Each arm's answer as text, where it chose its tokens itself."""

    def of(self, arm: str) -> Series:
        """The series of this arm."""
        return next(s for s in self.series if s.name == arm)


def now() -> str:
    """The current time as results have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def current_commit() -> str:
    """The commit of the code that runs, shortened; see Result.commit."""
    folder = Path(pgmoe.__file__).parent

    def git(arguments: Sequence[str]) -> str:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        commit = git(["rev-parse", "--short=7", "HEAD"])
        return commit + ("+" if git(["status", "--porcelain", "--", "."]) else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        return "unknown"
