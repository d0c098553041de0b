"""Text for language models: documents of all corpora, balanced, split and shuffled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pgmoe.errors import ConfigError
from recipes.document import Document
from recipes.table_file import read_table, write_table

TRAIN, HELD_OUT = "train.parquet", "heldout.parquet"
MAX_SHARE = 0.3
"""Of all characters that may be from one source."""
_HELD_OUT_ONE_IN = 50
_SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string())])


@dataclass(frozen=True)
class LmText:
    """Documents to train on and documents to test with; none is in both."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def save(self, folder: Path) -> None:
        """Write the two Parquet files, columns `text` and `source`. Raises ConfigError."""
        for name, documents in ((TRAIN, self.train), (HELD_OUT, self.held_out)):
            rows: list[dict[str, object]] = [
                {"text": document.text, "source": document.source} for document in documents
            ]
            write_table(rows, _SCHEMA, folder / name)


def read_documents(path: Path) -> list[Document]:
    """The documents of a file that `LmText.save` wrote. Raises ConfigError."""
    return [Document(row["text"], row["source"]) for row in read_table(path)]


def lm_text(documents: Iterable[Document], max_share: float = MAX_SHARE) -> LmText:
    """Drop duplicates, cap the sources' shares, hold one document in 50 out, shuffle.

    All by the texts' digests: the result does not depend on the order of `documents`, and a document is held
    out or not whatever the others are. Raises ConfigError where sources are too few for `max_share`.
    """
    by_source: dict[str, list[Document]] = defaultdict(list)
    for _, document in sorted({document.digest: document for document in documents}.items()):
        by_source[document.source].append(document)
    limit = _cap([_num_chars(members) for members in by_source.values()], max_share)
    kept = [document for members in by_source.values() for document in _first(members, limit)]
    kept.sort(key=lambda document: document.digest[8:])
    return LmText(
        tuple(document for document in kept if not _is_held_out(document)),
        tuple(document for document in kept if _is_held_out(document)),
    )


def _is_held_out(document: Document) -> bool:
    return int.from_bytes(document.digest[-8:], "big") % _HELD_OUT_ONE_IN == 0


def _num_chars(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _first(documents: Sequence[Document], limit: float) -> list[Document]:
    """As many as have `limit` characters together."""
    kept, total = [], 0
    for document in documents:
        total += len(document.text)
        if total > limit:
            break
        kept.append(document)
    return kept


def _cap(sizes: Sequence[int], max_share: float) -> float:
    """The most characters a source may have, so that it has at most `max_share` of what all then have."""
    descending = sorted(sizes, reverse=True)
    for num_capped, size in enumerate(descending):
        left = 1 - num_capped * max_share
        if left <= 0:
            break
        limit = max_share * sum(descending[num_capped:]) / left
        if size <= limit:
            return limit
    raise ConfigError(f"{len(sizes)} sources cannot have at most {max_share:.0%} each; raise max_share")
