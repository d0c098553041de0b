from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import typer
from rich.console import Console
from typer.testing import CliRunner

from recipes.data import Part, main, overview, parts, write_missing
from recipes.table_file import write_table


@dataclass
class Log:
    """What was written and told, in its order."""

    lines: list[str] = field(default_factory=list)

    def part(self, name: str) -> Part:
        def write(out: Path) -> None:
            self.lines.append(f"write {name}")
            (out / name).mkdir(exist_ok=True)
            (out / name / "a").touch()
            (out / name / "b").touch()

        return Part(name, ("a", "b"), write)

    def progress(self, what: str, done: int, total: int) -> None:
        self.lines.append(f"{done}/{total} {what}")


def test_parts_are_written_in_order_and_told(tmp_path: Path) -> None:
    log = Log()
    write_missing([log.part("x"), log.part("y")], tmp_path, log.progress)
    assert log.lines == ["0/2 x", "write x", "1/2 y", "write y", "2/2 all written"]


def test_a_part_is_written_again_only_if_one_of_its_files_is_missing(tmp_path: Path) -> None:
    log = Log()
    every = [log.part("x"), log.part("y")]
    write_missing(every, tmp_path, log.progress)
    (tmp_path / "y" / "b").unlink()
    log.lines.clear()
    write_missing(every, tmp_path, log.progress)
    assert [line for line in log.lines if line.startswith("write")] == ["write y"]


def test_no_two_parts_write_to_one_folder() -> None:
    folders = [part.folder for part in parts(Path("cache"))]
    assert len(folders) == len(set(folders)) == 6


def test_the_table_counts_lines_and_characters_of_text(tmp_path: Path) -> None:
    schema = pa.schema(
        [("prompt", pa.string()), ("source", pa.string()), ("references", pa.list_(pa.string()))]
    )
    row: dict[str, object] = {"prompt": "robin", "source": "wordnet", "references": ["bird"]}
    write_table([row] * 1200, schema, tmp_path / "task" / "train.parquet")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(overview([tmp_path / "task" / "train.parquet"], tmp_path))
    assert "│ task/train.parquet │ 1,200 │ 6,000      │" in console.export_text()


def test_errors_are_told_without_a_traceback(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    (tmp_path / "cache").write_text("a file, where packages should be kept")
    result = CliRunner().invoke(app, [str(tmp_path / "out"), "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 1
    assert f"Error: cannot write to {tmp_path / 'cache'}" in result.output
    assert "Traceback" not in result.output
