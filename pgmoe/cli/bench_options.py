"""Options that the benchmarks share, and what each needs before it can measure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgmoe.cli.console import bytes_bar, steps_bar
from pgmoe.cli.default_model import cache_folder
from pgmoe.errors import ConfigError
from pgmoe.new_file import check_writable_folder

if TYPE_CHECKING:
    from pgmoe.bench.benchmarks import Benchmark
    from pgmoe.bench.job import Place
    from pgmoe.bench.random_model import OlmoeShape

Rounds = Annotated[int, typer.Option(min=1, help="Times that every arm is measured, in turns.")]
Tokens = Annotated[int, typer.Option(min=9, help="Tokens of each answer.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Compute threads of every arm; torch's choice.")]


def _usable(out: Path) -> Path:
    check_writable_folder(out)
    return out


Out = Annotated[Path, typer.Option(help="Folder for the result file.", callback=_usable)]
Folder = Annotated[Path | None, typer.Option(help="Folder of the checkpoint; it is made there if missing.")]
Documents = Annotated[
    Path, typer.Argument(help="UTF-8, a document a line; or a Parquet file with a column `text`.")
]
RESULTS = Path("benchmarks/results")


def scratch_folder() -> Path:
    """Where checkpoints and files of benchmarks lie; it is made."""
    folder = cache_folder() / "bench"
    check_writable_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def link_options(emulate: str | None) -> tuple[tuple[str, str | int], ...]:
    """Of an engine whose experts come over an emulated link; none for none."""
    return () if emulate is None else (("emulated_link", emulate),)


def read_documents(text: Path, source: str | None = None) -> list[str]:
    """See `Documents`; of a Parquet file, with a `source`, the rows that name it in the column of this name.

    Raises ConfigError for a file that cannot be read or has none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if text.suffix == ".parquet":
            rows = None if source is None else [("source", "=", source)]
            found = parquet.read_table(text, columns=["text"], filters=rows)["text"].to_pylist()
        else:
            found = text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, KeyError, pa.ArrowException) as error:
        raise ConfigError(f"cannot read the text {text}: {error}") from error
    documents = [document for document in found if document and document.strip()]
    if not documents:
        raise ConfigError(f"{text} is empty; give a document a line, or rows with a column `text`")
    return documents


def make_random(folder: Path, shape: OlmoeShape, device: str) -> None:
    """Make the checkpoint unless `folder` has one."""
    import torch

    from pgmoe.bench.random_model import save_random_olmoe

    if (folder / "config.json").is_file():
        return
    with bytes_bar(f"Making {folder.name}") as progress:
        save_random_olmoe(folder, shape, torch.device(device), progress)


def make_place(model: Path, device: str, threads: int | None) -> Place:
    """Where every arm runs."""
    import torch

    from pgmoe.bench.job import Place

    waits = ", ".join(f"{n}={v}" for n, v in sorted(os.environ.items()) if n.startswith(("GOMP_", "OMP_")))
    return Place(str(model), device, threads or torch.get_num_threads(), waits, str(scratch_folder()))


def measure(
    benchmark: Benchmark, model: Path, device: str, threads: int | None, rounds: int, out: Path
) -> None:
    """Run a benchmark of arms, print it and save it."""
    from pgmoe.bench.report import render
    from pgmoe.bench.run import run_benchmark

    with steps_bar() as progress:
        result = run_benchmark(benchmark, make_place(model, device, threads), rounds, progress)
    typer.echo(render(result))
    typer.echo(f"written to {result.save(out)}", err=True)
