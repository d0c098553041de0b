"""Long works that come as JSON files with a field `text`: the SOTU speeches, Moby-Dick."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from recipes.packages import read_npm


def read_texts(package: Path) -> Iterator[str]:
    """The text of each JSON file of an npm package's folder data. Raises ConfigError."""
    for name, content in sorted(read_npm(package, "package/data/").items()):
        record = json.loads(content) if name.endswith(".json") else None
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            yield clean(record["text"])


def clean(text: str) -> str:
    """Paragraphs parted by one empty line, white space within them single spaces."""
    return "\n\n".join(filter(None, (" ".join(part.split()) for part in text.split("\n\n"))))
