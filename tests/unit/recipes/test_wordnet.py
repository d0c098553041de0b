from __future__ import annotations

from pathlib import Path

from recipes.wordnet import Synset, articles, read_senses, read_synsets
from tests.unit.recipes.packages import wordnet_package


def test_words_glosses_examples_and_hypernyms_are_read(tmp_path: Path) -> None:
    assert read_synsets(wordnet_package(tmp_path))["n00003000"] == Synset(
        "n00003000",
        ("robin", "redbreast"),
        "small songbird; of Europe",
        ("a robin sang", "robins build nests"),
        ("n00002000",),
    )


def test_what_something_is_an_instance_of_counts_as_hypernym(tmp_path: Path) -> None:
    assert read_synsets(wordnet_package(tmp_path))["n00005000"].hypernyms == ("n00001740",)


def test_adjectives_lose_the_mark_of_their_place(tmp_path: Path) -> None:
    synset = read_synsets(wordnet_package(tmp_path))["a00001740"]
    assert (synset.words, synset.gloss, synset.examples) == (("able",), "having the means", ("able to swim",))


def test_senses_stand_in_the_order_of_use(tmp_path: Path) -> None:
    senses = read_senses(wordnet_package(tmp_path))
    assert senses["robin"] == ("n00003000", "n00005000")
    assert senses["song thrush"] == ("n00002000",)


def test_meanings_stand_below_their_hypernym_in_the_text(tmp_path: Path) -> None:
    texts = list(articles(read_synsets(wordnet_package(tmp_path))))
    (thrushes,) = (text for text in texts if text.startswith("thrush"))
    assert thrushes.split("\n\n")[:2] == [
        "thrush, song thrush: songbirds with brownish plumage.",
        'robin, redbreast: small songbird; of Europe. "a robin sang" "robins build nests" '
        "It is a kind of thrush.",
    ]
    assert sum(text.count("fieldfare:") for text in texts) == 1
