"""The GNU Collaborative International Dictionary of English, as the dict protocol's server has it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from recipes.packages import read_deb

_MEMBER = "usr/share/dictd/gcide.dict.dz"
_ENTRY = re.compile(r"\n\n(?=\S)")
_SPOKEN = re.compile(r"\s*\\[^\\\n]+\\|\s*\([^()\n]*[\[*`][^()]*\)")
_ACCENTS = re.compile(
    r"""\[[='"`~^.,]+([A-Za-z]{1,2})\]|\[([A-Za-z]{1,2})["'`~^]+\]|\[([ao]e|[AO]E)\]|(?<=[a-z])[`*"](?=[a-z])|^'(?=[A-Z])"""
)
_BRACKETS = re.compile(
    r"\s*\[[^\[\]]*\]|\s*\[?(?:1913 Webster|WordNet 1\.5|PJC)\]"
)  # sources, etymologies with lost Greek, "[Obs.]"
_NO_PROSE = re.compile(r"^00-database|html?\b|https?:|\">", re.MULTILINE)  # about the file; remains of links
_MARKS = str.maketrans("", "", "{}\\\ufffd")


def read_entries(package: Path) -> Iterator[str]:
    """Each headword with its meanings, a paragraph each. Raises ConfigError."""
    data = gzip.decompress(read_deb(package, _MEMBER)).decode("utf-8", errors="replace")
    return entries(data)


def entries(data: str) -> Iterator[str]:
    """The entries of a dictionary file in their order, without those about the file itself or with links."""
    for entry in _ENTRY.split(data.strip("\n")):
        if not _NO_PROSE.search(entry):
            text = clean(entry)
            if text.count(" ") > 3:
                yield text


def clean(entry: str) -> str:
    """Paragraphs on one line each, without pronunciation, etymology, sources and cross-reference marks."""
    text = _ACCENTS.sub(lambda match: match[1] or match[2] or match[3] or "", _SPOKEN.sub("", entry))
    for _ in range(2):  # brackets nest
        text = _BRACKETS.sub("", text)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text.translate(_MARKS)))
    return "\n".join(filter(None, paragraphs))
