"""Pieces of text, each small enough to stand for one document."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARS = 4_000
"""Of one document; longer works are cut."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Document:
    """A paragraph to an article of plain text; paragraphs are parted by empty lines or line ends."""

    text: str
    source: str
    """The corpus that it is from."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text, white space aside: equal for duplicates, and as good as random otherwise."""
        return hashlib.sha256(" ".join(self.text.split()).encode()).digest()


def cut(text: str, max_chars: int = MAX_CHARS) -> Iterator[str]:
    """Pieces of at most `max_chars`, as long as they may be, that together are the text.

    Borders are ends of paragraphs; within a paragraph that is too long, ends of sentences, else spaces.
    """
    pieces = (piece for part in text.split("\n\n") for piece in _sized(part.strip(), max_chars))
    yield from _packed(pieces, "\n\n", max_chars)


def _sized(paragraph: str, max_chars: int) -> Iterator[str]:
    if len(paragraph) <= max_chars:
        yield paragraph
        return
    sentences = _SENTENCE_END.split(paragraph)
    parts = sentences if len(sentences) > 1 else paragraph.split()
    if len(parts) == 1:  # a word without end
        parts = [paragraph[start : start + max_chars] for start in range(0, len(paragraph), max_chars)]
    yield from _packed((piece for part in parts for piece in _sized(part, max_chars)), " ", max_chars)


def _packed(parts: Iterator[str], glue: str, max_chars: int) -> Iterator[str]:
    """As many parts as fit, joined by `glue`; each part fits by itself."""
    held = ""
    for part in parts:
        if held and len(held) + len(glue) + len(part) > max_chars:
            yield held
            held = part
        else:
            held = f"{held}{glue}{part}" if held else part
    if held:
        yield held
