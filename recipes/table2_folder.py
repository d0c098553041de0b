"""An experiment's folder: its plan, the data in the form that fine-tuning reads, and the scores so far.

Several processes share it. A run belongs to whoever has the lock of its name; scores are lines of one file,
written as they come, and a run with a line is done.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pgmoe.bench.quality_result import QualityRun
from pgmoe.errors import ConfigError
from recipes.table2_plan import Plan

_PLAN = TypeAdapter(Plan)
_ROW = TypeAdapter(QualityRun)


class Experiment:
    """Paths and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fresh, self.pretrained = folder / "fresh", folder / "pretrained"
        self.multi_task = folder / "multi-task"
        self._scores = folder / "scores.jsonl"

    def data(self, task: str, part: str) -> Path:
        """Prompts and completions, and nothing else; `part` is a file name."""
        return self.folder / "data" / task / part

    def plan(self) -> Plan:
        """The one that was noted. Raises ConfigError."""
        try:
            return _PLAN.validate_json((self.folder / "plan.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{self.folder} holds no plan of an experiment: {error}") from error

    def note(self, plan: Plan) -> None:
        """Note the plan, or raise ConfigError where another one is noted: its scores would be mixed."""
        path = self.folder / "plan.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_suffix(".new")
            partial.write_bytes(_PLAN.dump_json(plan, indent=2))
            partial.rename(path)
            return
        before, now = _flat(self.plan()), _flat(plan)
        changed = [f"{key} was {before.get(key)}" for key in before | now if before.get(key) != now.get(key)]
        if changed:
            raise ConfigError(
                f"{self.folder} holds an experiment with another plan ({'; '.join(changed)}); repeat that "
                "one to go on, or name another folder"
            )

    def rows(self) -> dict[str, QualityRun]:
        """Runs that are done, by name. A line that was cut short by a crash is no row."""
        try:
            lines = self._scores.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        rows = (row for line in lines if (row := _row(line)) is not None)
        return {row.name: row for row in rows}

    def add(self, row: QualityRun) -> None:
        """Write a line to the disk. The leading newline parts it from one that was cut short."""
        descriptor = os.open(self._scores, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, b"\n" + _ROW.dump_json(row) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this run is ours while the block runs; the kernel ends a dead process's claim."""
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def _row(line: bytes) -> QualityRun | None:
    try:
        return _ROW.validate_json(line)
    except ValidationError:
        return None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Options by dotted path."""
    if isinstance(value, Plan):
        value = json.loads(_PLAN.dump_json(value))
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}".lstrip(".")).items()}
