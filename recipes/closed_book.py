"""Closed-book questions after WordNet: what kind of thing does a word name?

The prompt holds the word alone, as in CB-WebQA. The answer is the next more general word (hypernym), if that
has hyponyms enough to be learnt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from recipes.example import Example, Task, divide
from recipes.wordnet import Synset

NAME = "closed_book"
NUM_TEST = 1_000
_MIN_FREQUENCY, _MAX_FREQUENCY = 50, 150
"""Hyponyms that an answer has, and examples that it is given."""
_MAX_SYNONYMS = 2
_RANKS = ("genus ", "family ", "order ", "class ", "phylum ", "division ", "superfamily ", "subfamily ")
_WORD = re.compile(r"[A-Za-z][a-z]+(?:[ '-][A-Za-z]?[a-z]+)*")


def closed_book(
    synsets: Mapping[str, Synset],
    senses: Mapping[str, Sequence[str]],
    min_frequency: int = _MIN_FREQUENCY,
    num_test: int = NUM_TEST,
) -> Task:
    """Questions on nouns in their most usual meaning; synonyms are not parted between train and test.

    Accepted are all names of all direct hypernyms of all the word's meanings.
    """
    return divide(NAME, _capped(_examples(synsets, senses, min_frequency)), num_test)


def _examples(
    synsets: Mapping[str, Synset], senses: Mapping[str, Sequence[str]], min_frequency: int
) -> Iterator[Example]:
    frequency = Counter(key for synset in synsets.values() for key in synset.hypernyms)
    for synset in synsets.values():
        answers = [key for key in synset.hypernyms if frequency[key] >= min_frequency]
        for word in synset.words[:_MAX_SYNONYMS]:
            keys = senses.get(word.lower(), ())
            if answers and keys and keys[0] == synset.key and _is_plain(word):
                completion = synsets[answers[0]].words[0]
                accepted = _hypernyms(synsets, keys)
                references = (completion, *(name for name in accepted if name != completion))
                yield Example(question(word), completion, references, synset.key)


def question(word: str) -> str:
    """The prompt for a word."""
    return f'What kind of thing is "{word}"?'


def _is_plain(word: str) -> bool:
    return _WORD.fullmatch(word) is not None and not word.startswith(_RANKS)


def _hypernyms(synsets: Mapping[str, Synset], keys: Iterable[str]) -> list[str]:
    above = (synsets[up] for key in keys if key in synsets for up in synsets[key].hypernyms)
    return list(dict.fromkeys(name for synset in above for name in synset.words))


def _capped(examples: Iterable[Example]) -> Iterator[Example]:
    """At most `_MAX_FREQUENCY` of each answer, spread evenly over its examples."""
    by_answer: dict[str, list[Example]] = defaultdict(list)
    for item in examples:
        by_answer[item.completion].append(item)
    for members in by_answer.values():
        step = max(1.0, len(members) / _MAX_FREQUENCY)
        yield from (members[int(index * step)] for index in range(min(len(members), _MAX_FREQUENCY)))
