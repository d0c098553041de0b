"""Sentences, and runs of them that are short enough for a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARS = 300
"""Of a passage: at most about 100 tokens of the tokenizer that is trained here."""
_BORDER = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\bSt\.)(?<!\b[DMJ]r\.)(?<!\bMrs\.)(?<!\bLt\.)(?<!\bc\.)(?<!\bca\.)"
    r'\s+(?=["“(]?[A-Z0-9])'
)


def sentences(text: str) -> list[str]:
    """The text cut where a sentence ends; initials and the usual abbreviations end none."""
    return _BORDER.split(text)


def passage(parts: Sequence[str], at: int = 0, max_chars: int = MAX_CHARS) -> str:
    """Sentence `at` with those before it and then those after it, as far as `max_chars` allow.

    A sentence too long by itself makes a passage of its own, shortened at a space.
    """
    start, end = at, at + 1
    while start > 0 and len(" ".join(parts[start - 1 : end])) <= max_chars:
        start -= 1
    while end < len(parts) and len(" ".join(parts[start : end + 1])) <= max_chars:
        end += 1
    text = " ".join(parts[start:end])
    return text if len(text) <= max_chars else text[: max_chars + 1].rpartition(" ")[0]
