"""Supervised examples and their division by what they are about."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recipes.table_file import read_table, write_table

TRAIN, TEST = "train.parquet", "test.parquet"
_SCHEMA = pa.schema(
    [("prompt", pa.string()), ("completion", pa.string()), ("references", pa.list_(pa.string()))]
)


@dataclass(frozen=True)
class Example:
    """A prompt with the answer to learn and all that are right."""

    prompt: str
    completion: str
    references: tuple[str, ...]
    """Accepted answers, `completion` first."""
    about: str = ""
    """The entity or word; examples about one are all in train or all in test. Empty if read from a file."""


@dataclass(frozen=True)
class Task:
    """What is trained on and what is tested on: nothing is in both, nor do both ask about one thing."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def save(self, folder: Path) -> None:
        """Write the two Parquet files, columns `prompt`, `completion`, `references`. Raises ConfigError."""
        for name, examples in ((TRAIN, self.train), (TEST, self.test)):
            rows: list[dict[str, object]] = [
                {"prompt": item.prompt, "completion": item.completion, "references": list(item.references)}
                for item in examples
            ]
            write_table(rows, _SCHEMA, folder / name)

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read what `save` wrote; the folder's name is the task's. Raises ConfigError."""
        return cls(folder.name, _read(folder / TRAIN), _read(folder / TEST))

    def majority_exact_match(self) -> float:
        """Share of the test that the training's most frequent answer gets right, 0 to 1."""
        ((answer, _),) = Counter(item.completion for item in self.train).most_common(1)
        return sum(answer in item.references for item in self.test) / len(self.test)


def _read(path: Path) -> tuple[Example, ...]:
    return tuple(
        Example(row["prompt"], row["completion"], tuple(row["references"])) for row in read_table(path)
    )


def divide(name: str, examples: Iterable[Example], num_test: int) -> Task:
    """Part into train and test and shuffle, by digests alone: the examples' order has no part in it.

    Whole groups (`Example.about`) go to test until it has `num_test` examples. Prompts come once.
    """
    groups: dict[str, dict[str, Example]] = defaultdict(dict)
    for item in sorted(examples, key=lambda item: (item.prompt, item.completion)):
        groups[item.about.casefold()].setdefault(item.prompt, item)
    train: list[Example] = []
    test: list[Example] = []
    for about in sorted(groups, key=_digest):
        (test if len(test) < num_test else train).extend(groups[about].values())
    return Task(name, *(tuple(sorted(part, key=lambda item: _digest(item.prompt))) for part in (train, test)))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
