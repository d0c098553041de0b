"""WordNet: words in sets of synonyms, each with a gloss, examples and more general sets (hypernyms)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.packages import read_npm

_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_EXAMPLE = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Synset:
    """A meaning and the words for it."""

    key: str
    """Part of speech (n, v, a, r) and place in WordNet's file."""
    words: tuple[str, ...]
    """The most usual first, with spaces."""
    gloss: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]
    """Keys of the next more general meanings; for an instance (Paris), of what it is an instance of."""


def read_synsets(package: Path) -> dict[str, Synset]:
    """All meanings by key, from the npm package. Raises ConfigError."""
    files = read_npm(package, "package/dict/data.")
    parsed = (
        synset
        for part, letter in _PARTS.items()
        for synset in parse(files[f"package/dict/data.{part}"].decode(), letter)
    )
    return {synset.key: synset for synset in parsed}


def parse(data: str, letter: str) -> Iterator[Synset]:
    """The synsets of a file data.noun, data.verb, …; see wndb(5WN) for its format."""
    for line in data.splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, text = line.partition("|")
        offset, _, _, num_words, *rest = fields.split()
        count = int(num_words, 16)
        words = (re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[: 2 * count : 2])
        pointers = rest[2 * count + 1 : 2 * count + 1 + 4 * int(rest[2 * count])]
        hypernyms = (
            f"{pointers[at + 2]}{pointers[at + 1]}"
            for at in range(0, len(pointers), 4)
            if pointers[at] in ("@", "@i")
        )
        gloss = text.split('; "')[0].strip().strip(";")
        examples = tuple(_EXAMPLE.findall(text[text.find('; "') :])) if '; "' in text else ()
        yield Synset(f"{letter}{offset}", tuple(words), gloss, examples, tuple(hypernyms))


def read_senses(package: Path) -> dict[str, tuple[str, ...]]:
    """For each noun in lower case the keys of its meanings, the most usual first. Raises ConfigError."""
    name = "package/dict/index.noun"
    return dict(parse_index(read_npm(package, name)[name].decode(), "n"))


def parse_index(data: str, letter: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The words of a file index.noun, index.verb, … with their synsets' keys."""
    for line in data.splitlines():
        if not line.startswith("  "):
            word, _, count, *rest = line.split()
            yield word.replace("_", " "), tuple(f"{letter}{offset}" for offset in rest[-int(count) :])


def articles(synsets: dict[str, Synset]) -> Iterator[str]:
    """Text for language models: each meaning after its hypernym, a line each.

    Meanings without a hypernym (adjectives, adverbs) come in WordNet's order, fifty in an article.
    """
    under: dict[str, list[Synset]] = defaultdict(list)
    for synset in synsets.values():
        under[synset.hypernyms[0] if synset.hypernyms else ""].append(synset)
    for start in range(0, len(under[""]), 50):
        yield "\n\n".join(map(line, under[""][start : start + 50]))
    for key, members in under.items():
        if key:
            yield "\n\n".join([line(synsets[key]), *(_kind(member, synsets[key]) for member in members)])


def line(synset: Synset) -> str:
    """Words, gloss and examples: 'dwarf: a plant or animal that is atypically small. "…"'."""
    said = "".join(f' "{example}"' for example in synset.examples)
    return f"{_listed(synset.words)}: {synset.gloss}.{said}"


def _kind(synset: Synset, hypernym: Synset) -> str:
    if not synset.key.startswith("n"):
        return line(synset)
    return f"{line(synset)} It is a kind of {hypernym.words[0]}."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
