"""What the default model is trained on: so many characters of each source, and chats.

`python -m recipes.mixture OUT --text FOLDER --chats FILE` writes `train.parquet` and `heldout.parquet`, with
the columns `text` and `source`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from recipes.document import Document
from recipes.lm_text import HELD_OUT, TRAIN, LmText, read_documents
from recipes.table_file import read_table

SHARES = {
    "wiki": 0.25,
    "sotu": 0.25,
    "chat": 0.2,
    "moby-dick": 0.06,
    "wordnet": 0.08,
    "gcide": 0.08,
    "perl-doc": 0.08,
}
"""Of all characters. Running prose above all: it is what people ask a model to write."""
NUM_CHARS = 2_200_000
NUM_HELD_OUT_CHARS = 200_000
_CHATS_HELD_OUT_ONE_IN = 20


def mix(
    documents: Iterable[Document], num_chars: int, shares: Mapping[str, float] = SHARES
) -> tuple[Document, ...]:
    """The first documents of each source, in their order, until each has its share or nothing is left."""
    left = {source: share * num_chars for source, share in shares.items()}
    kept = []
    for document in documents:
        if left.get(document.source, 0) > 0:
            left[document.source] -= len(document.text)
            kept.append(document)
    return tuple(kept)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, default=Path("build/data/lm"))
    parser.add_argument("--chats", type=Path, default=Path("build/data/chats.parquet"))
    args = parser.parse_args()
    chats = [Document(row["text"], "chat") for row in read_table(args.chats)]
    held_out = chats[::_CHATS_HELD_OUT_ONE_IN]
    train = [chat for index, chat in enumerate(chats) if index % _CHATS_HELD_OUT_ONE_IN]
    LmText(
        mix([*read_documents(args.text / TRAIN), *train], NUM_CHARS),
        mix([*read_documents(args.text / HELD_OUT), *held_out], NUM_HELD_OUT_CHARS),
    ).save(args.out)


if __name__ == "__main__":
    main()
