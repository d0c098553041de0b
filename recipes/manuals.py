"""Technical English: Perl's manual pages (pod), the Debian reference (plain text)."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from recipes.packages import read_deb, read_deb_folder

_PODS = "usr/share/perl/*/pod/*.pod"
_NO_PROSE = re.compile(r"perl(toc|uniprops|cn|jp|ko|tw|api|intern|modlib)\.pod$")  # lists; other languages
_REFERENCE = "usr/share/debian-reference/debian-reference.en.txt.gz"
_NAMED = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
_INDEX = re.compile(r"[XZ]<+[^<>]*>+")
_LINK = re.compile(r"L<(?:<+ )?(?:([^|<>]+)\|)?([^<>]+?)(?: >+)?>")
_DOUBLED = re.compile(r"[A-Z](<<+) (.+?) >>+", re.DOTALL)
_CODE = re.compile(r"[BCFIS]<([^<>]*)>")
_ESCAPE = re.compile(r"E<(\w+)>")


def read_pods(package: Path) -> Iterator[str]:
    """The prose of each manual page. Raises ConfigError."""
    for name, content in read_deb_folder(package, _PODS).items():
        if not _NO_PROSE.search(name):
            yield pod_prose(content.decode("utf-8", errors="replace"))


def pod_prose(pod: str) -> str:
    """Headings and paragraphs of a page in perlpod's format, without verbatim blocks and formatting codes."""
    return "\n\n".join(filter(None, map(_pod_paragraph, re.split(r"\n\s*\n", pod))))


def _pod_paragraph(paragraph: str) -> str:
    text = paragraph.strip("\n")
    if text.startswith((" ", "\t")):
        return ""
    if text.startswith("="):
        command, _, text = text.partition(" ")
        if not command.startswith(("=head", "=item")) or len(text) < 3:
            return ""
    text = _INDEX.sub("", text)
    for _ in range(3):  # codes nest
        text = _ESCAPE.sub(lambda match: _escape(match[1]), text)
        text = _LINK.sub(lambda match: match[1] or match[2], text)
        text = _DOUBLED.sub(r"\2", _CODE.sub(r"\1", text))
    return " ".join(text.split())


def _escape(name: str) -> str:
    return chr(int(name)) if name.isdecimal() else _NAMED.get(name, "")


def read_reference(package: Path) -> str:
    """The prose of the Debian reference. Raises ConfigError."""
    return reference_prose(gzip.decompress(read_deb(package, _REFERENCE)).decode())


def reference_prose(text: str) -> str:
    """The paragraphs that are sentences: no tables, lists of contents, commands."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if re.match(r"[A-Z].{60,}[.:]$", part))
